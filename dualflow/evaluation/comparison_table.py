"""The table of a comparison: one row per flow, gathered from what training and evaluation left on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dualflow.commit import read_manifest
from dualflow.config import Config
from dualflow.errors import CheckpointError
from dualflow.evaluation.nll import condition_check
from dualflow.evaluation.statistics import subject_means, summarise
from dualflow.layout import Scan
from dualflow.training.budget import Plan, identity_of
from dualflow.training.checkpoint import load_card

CARD_SECONDS = ("mean_seconds", "pretrain_seconds", "initialize_seconds")
"""What a training spends beside its optimiser steps, by the card's names."""
SHARES = {"own_beats_other": ("nll_true", "nll_wrong"), "own_beats_blurred": ("nll_true", "nll_blurred")}
"""Shares of the people whose first NLL is the lower one."""


def collect(config: Config, plan: Plan) -> pd.DataFrame:
    """One row per flow that is trained and scored as planned; a metric's interval is in METRIC_low and METRIC_high.

    Seconds of a step are the plan's; other costs are means over the seeds, memory the largest of them. Scores are means
    over people, seeds averaged first, with 95 % bootstrap intervals; shares have Wilson's.
    """
    done = {name: list(_finished(config, plan, name)) for name in config.flows}
    done = {name: seeds for name, seeds in done.items() if seeds}
    if not done:
        return pd.DataFrame()
    scores = pd.concat([seed.scores for seeds in done.values() for seed in seeds], ignore_index=True)
    numbers = [str(name) for name in scores.select_dtypes("number") if name != "seed"]
    summary = summarise(scores, bootstrap=config.evaluate.bootstrap, seed=config.evaluate.seed, metrics=numbers)
    rows = []
    for name, seeds in done.items():
        known = summary[summary["model"] == name].set_index("metric")
        people = {Scan.parse(key).subject for seed in seeds for key in seed.scores["scan"]}
        row = {"model": name, "seeds": len(seeds), "people": len(people), **_cost(seeds, plan.flows[name].step_seconds)}
        for metric, entry in known.iterrows():
            row |= _with_interval(str(metric), entry["mean"], entry["low"], entry["high"])
        row |= _shares(scores[scores["model"] == name])
        row |= _safety(seeds)
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Seed:
    """One finished training of a flow and its scores.

    Attributes:
        card: of the model.
        steps: optimiser steps of the flow itself, after any pre-training of its source.
        memory_mib: peak memory of its training, MiB; NaN where it was not measured.
        scores: one row per held-out scan.
        stress: its stress test, where there was one.
    """

    card: dict[str, Any]
    steps: int
    memory_mib: float
    scores: pd.DataFrame
    stress: pd.DataFrame | None


def _finished(config: Config, plan: Plan, name: str) -> Iterator[Seed]:
    """Seeds of a flow whose scores belong to its model, and whose model to the plan."""
    layout, entry = config.layout, plan.flows.get(name)
    if entry is None or entry.identity != identity_of(config, config.flows[name]):
        return
    for seed in config.train.seeds:
        stem, folder = f"{name}_seed-{seed}", layout.model(name, seed)
        manifest = read_manifest(layout.manifest(f"evaluate/{stem}"))
        try:
            card = load_card(folder)
        except CheckpointError:
            continue
        history = folder / "history.tsv"
        if manifest is None or manifest["inputs"].get("model") != card["weights_sha256"] or not history.is_file():
            continue
        steps = int(pd.read_csv(history, sep="\t")["step"].iloc[-1])
        if steps + card.get("pretrain_steps", 0) == entry.steps:
            benchmark = layout.benchmark(f"train/{stem}")
            memory = pd.read_csv(benchmark, sep="\t")["max_rss"] if benchmark.is_file() else pd.Series([np.nan])
            scores = pd.read_csv(layout.table(f"scans_{stem}"), sep="\t")
            tested = layout.stress(name, seed)
            stress = pd.read_csv(tested, sep="\t") if tested.is_file() else None
            yield Seed(card, steps, float(pd.to_numeric(memory, errors="coerce").max()), scores, stress)


def _cost(seeds: list[Seed], step_seconds: float) -> dict[str, float]:
    spent = {
        key: float(np.mean([seed.card[key] for seed in seeds]))
        for key in CARD_SECONDS
        if all(key in seed.card for seed in seeds)
    }
    return {
        "parameters": seeds[0].card["parameters"],
        "steps": seeds[0].steps + seeds[0].card.get("pretrain_steps", 0),
        "step_seconds": step_seconds,
        "train_seconds": float(np.mean([seed.card["train_seconds"] for seed in seeds])),
        **spent,
        "memory_mib": max(seed.memory_mib for seed in seeds),
    }


def _shares(own: pd.DataFrame) -> dict[str, float]:
    """Share of the people who win each of SHARES, from one flow's per-scan table."""
    row: dict[str, float] = {}
    for name, pair in SHARES.items():
        people = subject_means(own, pair)
        if set(pair) <= set(people) and len(known := people.dropna(subset=list(pair))):
            check = condition_check(known[pair[0]].to_numpy(), known[pair[1]].to_numpy())
            row |= _with_interval(name, check.share, check.low, check.high)
    return row


def _safety(seeds: list[Seed]) -> dict[str, float]:
    """Totals of the stress tests of all seeds; nothing where there was none."""
    tables = [seed.stress for seed in seeds if seed.stress is not None]
    if not tables:
        return {}
    table = pd.concat(tables)
    return {"stress_samples": int(table["samples"].sum()), "stress_nonfinite": int(table["nonfinite_voxels"].sum())}


def _with_interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
