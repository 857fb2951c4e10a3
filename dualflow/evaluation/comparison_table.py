"""Comparison table: one row per flow, from the results that training and evaluation wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dualflow.config import Config
from dualflow.data.tsv import read_typed_table
from dualflow.errors import CheckpointError
from dualflow.evaluation.condition_check import condition_check
from dualflow.evaluation.statistics import subject_means, summarise
from dualflow.layout import Scan
from dualflow.manifest import read_manifest
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card
from dualflow.training.budget import Plan, step_identity

CARD_SECONDS = ("mean_seconds", "pretrain_seconds", "initialize_seconds")
"""Fields of the model card with the seconds that a training spends outside its optimiser steps."""
WINS = {"true_beats_wrong": ("nll_true", "nll_wrong"), "true_beats_blurred": ("nll_true", "nll_blurred")}
"""Share of subjects whose first NLL is below the second."""


@dataclass(frozen=True)
class SeedResult:
    """One finished training of a flow and its scores.

    Attributes:
        card: model card.
        steps: optimiser steps of the flow itself, without pre-training of its source.
        memory_mib: peak memory of the training process in MiB; NaN if it was not measured.
        scores: one row per held-out scan.
        stress: table of the stress test, or None.
    """

    card: ModelCard
    steps: int
    memory_mib: float
    scores: pd.DataFrame
    stress: pd.DataFrame | None


def comparison_table(config: Config, plan: Plan) -> pd.DataFrame:
    """One row per flow that is trained and scored as planned; METRIC_low and METRIC_high hold a metric's interval.

    Step seconds are the plan's. Other costs are means over seeds; memory is their maximum. Scores average seeds first,
    then subjects, with 95 % bootstrap intervals; shares have Wilson intervals.
    """
    results = {name: list(_finished_seeds(config, plan, name)) for name in config.flows}
    results = {name: seeds for name, seeds in results.items() if seeds}
    if not results:
        return pd.DataFrame()
    scores = pd.concat([seed.scores for seeds in results.values() for seed in seeds], ignore_index=True)
    metrics = [str(name) for name in scores.select_dtypes("number") if name != "seed"]
    summary = summarise(scores, bootstrap=config.evaluate.bootstrap, seed=config.evaluate.seed, metrics=metrics)
    rows = []
    for name, seeds in results.items():
        subjects = {Scan.parse(key).subject for seed in seeds for key in seed.scores["scan"]}
        row = {"model": name, "seeds": len(seeds), "subjects": len(subjects)}
        row |= _cost(seeds, plan.flows[name].step_seconds)
        for metric, entry in summary[summary["model"] == name].set_index("metric").iterrows():
            row |= _with_interval(str(metric), entry["mean"], entry["low"], entry["high"])
        row |= _win_shares(scores[scores["model"] == name])
        row |= _stress_totals(seeds)
        rows.append(row)
    return pd.DataFrame(rows)


def _finished_seeds(config: Config, plan: Plan, name: str) -> Iterator[SeedResult]:
    """Seeds of a flow whose scores belong to the stored weights, and whose training follows the plan."""
    layout, budget = config.layout, plan.flows.get(name)
    if budget is None or budget.identity != step_identity(config, config.flows[name]):
        return
    for seed in config.train.seeds:
        stem, folder = f"{name}_seed-{seed}", layout.model(name, seed)
        manifest = read_manifest(layout.manifest(f"evaluate/{stem}"))
        try:
            card = load_card(folder)
        except CheckpointError:
            continue
        history = folder / "history.tsv"
        if manifest is None or manifest["inputs"].get("model") != card.weights_sha256 or not history.is_file():
            continue
        steps = int(read_typed_table(history)["step"].iloc[-1])
        if steps + card.training.pretrain_steps == budget.steps:
            benchmark = layout.benchmark(f"train/{stem}")
            memory = read_typed_table(benchmark)["max_rss"] if benchmark.is_file() else pd.Series([np.nan])
            scores = read_typed_table(layout.table(f"scans_{stem}"))
            stress_file = layout.stress(name, seed)
            stress = read_typed_table(stress_file) if stress_file.is_file() else None
            yield SeedResult(card, steps, float(pd.to_numeric(memory, errors="coerce").max()), scores, stress)


def _cost(seeds: list[SeedResult], step_seconds: float) -> dict[str, float]:
    means = {key: float(np.mean([getattr(seed.card.training, key) for seed in seeds])) for key in CARD_SECONDS}
    return {
        "parameters": seeds[0].card.parameters,
        "steps": seeds[0].steps + seeds[0].card.training.pretrain_steps,
        "step_seconds": step_seconds,
        "train_seconds": float(np.mean([seed.card.training.seconds for seed in seeds])),
        **{key: seconds for key, seconds in means.items() if seconds > 0},
        "memory_mib": max(seed.memory_mib for seed in seeds),
    }


def _win_shares(scores: pd.DataFrame) -> dict[str, float]:
    """Each share of WINS with its interval, from the per-scan scores of one flow."""
    row: dict[str, float] = {}
    for name, pair in WINS.items():
        subjects = subject_means(scores, pair)
        if set(pair) <= set(subjects) and len(complete := subjects.dropna(subset=list(pair))):
            check = condition_check(complete[pair[0]].to_numpy(), complete[pair[1]].to_numpy())
            row |= _with_interval(name, check.share, check.low, check.high)
    return row


def _stress_totals(seeds: list[SeedResult]) -> dict[str, float]:
    """Totals of the stress tests over seeds; empty without a stress test."""
    tables = [seed.stress for seed in seeds if seed.stress is not None]
    if not tables:
        return {}
    table = pd.concat(tables)
    return {"stress_samples": int(table["samples"].sum()), "stress_nonfinite": int(table["nonfinite_voxels"].sum())}


def _with_interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
