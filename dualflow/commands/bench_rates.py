"""`dualflow bench rates`: models trained at several peak learning rates, compared on the validation people."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

import pandas as pd
import torch

from dualflow.commands.learning_data import LearningData, fingerprint_of
from dualflow.commands.train import fit_model
from dualflow.commit import commit_text
from dualflow.config import Config
from dualflow.config.learning import SEEDED, BaselineTraining
from dualflow.data.markdown import UNKNOWN, markdown_table
from dualflow.data.tsv import table_text
from dualflow.errors import ConfigError, DataError, DriftError, DualflowError
from dualflow.imaging.regions import region_map
from dualflow.manifest import read_manifest, write_manifest
from dualflow.process import keep_freed_memory
from dualflow.training.context import TrainingContext
from dualflow.training.device import select_device
from dualflow.training.distributed import ProcessGroup

NAME = "rates"
"""Name of the table's files."""
DIVERGED = (DualflowError, DriftError)
"""Errors of a training whose rate is too high; those of other classes are no result."""


def bench_rates(config: Config, models: Sequence[str], rates: Sequence[float]) -> None:
    """Train each model at each rate with each seed of the study; print and write the validation scores.

    A finished training is not repeated.

    Args:
        config: the study's configuration.
        models: flows of the configuration and network baselines; empty for the study's network baselines.
        rates: peak learning rates.

    Raises:
        ConfigError: a model has no gradient steps.
        DataError: there are no validation people.
    """
    names = list(models) or [str(name) for name in config.baselines.models if name in SEEDED]
    unsuitable = [name for name in names if name not in config.flows and name not in SEEDED]
    if unsuitable or not names:
        raise ConfigError(
            f"rates of {', '.join(unsuitable) or 'no model'}; expected models with gradient steps, choose from: "
            f"{', '.join([*config.flows, *SEEDED])}"
        )
    keep_freed_memory()
    data = LearningData.load(config)
    if not len(data.validation):
        raise DataError("no validation people; rates are compared on them, so set split.validation")
    rows = [
        {"model": name, "rate": rate, "seed": seed, **_score(with_rate(config, name, rate), name, rate, seed, data)}
        for name in names
        for rate in sorted(rates)
        for seed in config.train.seeds
    ]
    table = summarise_rates(pd.DataFrame(rows))
    text = rates_markdown(table)
    commit_text(config.layout.table(NAME), table_text(table))
    commit_text(config.layout.page(NAME), text + "\n")
    print(text)
    people = len(set(data.validation.subjects))
    print(f"{people} validation people, seeds {', '.join(map(str, config.train.seeds))}; lower is better")


def with_rate(config: Config, name: str, rate: float) -> Config:
    """The configuration with a peak learning rate of one model."""
    if name in config.flows:
        return config.with_fields("train", learning_rate=rate)
    settings = {str(key): value for key, value in config.baselines.training.items()}
    settings[name] = settings.get(name, BaselineTraining()).model_copy(update={"learning_rate": rate})
    return config.with_fields("baselines", training=settings)


def _score(config: Config, name: str, rate: float, seed: int, data: LearningData) -> dict[str, float]:
    """Validation score and best step of one training; infinite if it diverged."""
    stem = f"{NAME}/{name}_rate-{rate:g}_seed-{seed}"
    record = config.layout.manifest(f"bench/{stem}")
    fingerprint = fingerprint_of(config, name, data)
    plan = {"training": fingerprint, "seed": seed}
    if (manifest := read_manifest(record, config=plan)) is not None:
        return _numbers(manifest["facts"])
    context = TrainingContext(
        config.train,
        config.layout.bench_training(stem),
        seed,
        label=f"{name}, rate {rate:g}, seed {seed}",
        fingerprint=fingerprint,
        group=ProcessGroup(device=select_device(config.train.device)),
        regions=torch.from_numpy(region_map(config.preprocess).labels),
        closed_form=data.closed_form_cache(config.layout),
    )
    facts: dict[str, Any] = {"score": None, "best_step": 0}
    try:
        history = fit_model(config, name, data, context).history
        facts = {"score": history.best, "best_step": history.best_step}
    except DualflowError as error:
        if type(error) not in DIVERGED:
            raise
        print(f"warning: {context.label}: {error}", file=sys.stderr)
    write_manifest(record, step="bench rates", outputs={}, inputs=data.digests, config=plan, facts=facts)
    shutil.rmtree(context.folder, ignore_errors=True)
    return _numbers(facts)


def _numbers(facts: dict[str, Any]) -> dict[str, float]:
    return {"score": inf if facts["score"] is None else float(facts["score"]), "best_step": float(facts["best_step"])}


def summarise_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean score and best step over seeds of each model and rate, and whether the rate is the model's best."""
    order = list(dict.fromkeys(rows["model"]))
    table = rows.groupby(["model", "rate"], as_index=False)[["score", "best_step"]].mean()
    table = table.sort_values("model", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)
    least = table.groupby("model")["score"].transform("min")
    return table.assign(best=(table["score"] == least) & (least < inf))


def rates_markdown(table: pd.DataFrame) -> str:
    """The score of each model at each rate; the best one is marked, and so is one at the edge."""
    rates = sorted(table["rate"].unique())
    lines = [["model", *(f"{rate:g}" for rate in rates), "best rate"]]
    for name, rows in table.groupby("model", sort=False):
        scores = dict(zip(rows["rate"], rows["score"], strict=True))
        best = rows.loc[rows["best"], "rate"].tolist()
        lines.append([str(name), *(_cell(scores[rate]) for rate in rates), _choice(best, rates)])
    return markdown_table(lines)


def _cell(score: float) -> str:
    return f"{score:.5f}" if isfinite(score) else "diverged"


def _choice(best: Sequence[float], rates: Sequence[float]) -> str:
    if not best:
        return UNKNOWN
    if len(best) > 1:
        return "no difference"
    edge = " (edge: try further ones)" if len(rates) > 1 and best[0] in (rates[0], rates[-1]) else ""
    return f"{best[0]:g}{edge}"
