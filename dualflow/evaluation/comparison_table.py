"""Comparison of the models of a study over folds and seeds, from the results that training and evaluation wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dualflow.config import Config, training_values
from dualflow.data.markdown import UNKNOWN
from dualflow.data.tsv import read_typed_table
from dualflow.errors import CheckpointError, DataError
from dualflow.evaluation.condition_check import subject_check
from dualflow.evaluation.current_scores import CurrentScans, current_ceilings, current_scores
from dualflow.evaluation.statistics import DIFFERENCES, differences, summarise
from dualflow.evaluation.study_metrics import TRUE_LAW, TRUE_SPREAD, with_true_spread
from dualflow.layout import Scan, training_key
from dualflow.manifest import read_manifest
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card
from dualflow.training.budget import ModelBudget, Plan, apply_plan, budgeted, step_identity
from dualflow.training.build_baseline import build_baseline
from dualflow.training.flow_spec import flow_spec

CARD_SECONDS = ("mean_seconds", "pretrain_seconds", "initialize_seconds", "calibrate_seconds")
"""Fields of the model card with the seconds that a training spends outside its optimiser steps."""
CALIBRATION = ("nats_before", "nats_after")
"""Facts of the model card on what calibration changed."""
WINS = {"true_beats_wrong": ("nll_true", "nll_wrong"), "true_beats_blurred": ("nll_true", "nll_blurred")}
"""Share of subjects whose first NLL is below the second."""


@dataclass(frozen=True)
class Training:
    """One finished training of a model and its scores.

    Attributes:
        card: model card.
        fold: index of the study whose test people were scored.
        memory_mib: peak memory of the training process in MiB; NaN if it was not measured.
        scores: one row per held-out scan.
        stress: table of the stress test, or None.
    """

    card: ModelCard
    fold: int
    memory_mib: float
    scores: pd.DataFrame
    stress: pd.DataFrame | None


@dataclass(frozen=True)
class Comparison:
    """The models that are trained and scored as planned.

    Attributes:
        table: one row per model, and one of the true law of a simulation, the lowest voxel CRPS first; METRIC_low and
            METRIC_high hold a metric's interval.
        differences: paired differences to the reference, from `statistics.differences`; empty with one model.
        scores: one row per model or true law, seed and held-out scan, with its fold.
        reference: the model that the others are compared with; empty without models.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    scores: pd.DataFrame
    reference: str


def gather_comparison(studies: Sequence[Config], plan: Plan) -> Comparison:
    """Compare the models over `studies`, which differ in their held-out people.

    Scores average seeds first, then visits; the people of all folds form one sample. Intervals are 95 % bootstrap
    intervals over people, those of shares are Wilson intervals. Step seconds are the plan's; other costs are means over
    trainings, and memory is their maximum. The reference is the main flow, or the first model without it. The true law
    of a simulation takes part in no paired comparison. A model that lacks people of the others, because a training
    failed, is left out: the mean over some folds does not compare with that over all.
    """
    names = [*studies[0].flows, *studies[0].baselines.models]
    scans = [_current_scans(study) for study in studies]
    trainings = {name: [*_finished(studies, scans, plan, name)] for name in names}
    trainings = _scored_on_everyone(trainings)
    if not trainings:
        return Comparison(pd.DataFrame(), pd.DataFrame(columns=list(DIFFERENCES)), pd.DataFrame(), "")
    scored = [t.scores.assign(fold=t.fold) for finished in trainings.values() for t in finished]
    scores = with_true_spread(pd.concat([*scored, *_true_law(studies, scans)], ignore_index=True))
    scores = with_bits_of_all(scores)
    options = studies[0].evaluate.model_dump(include={"bootstrap", "seed"})
    metrics = [str(name) for name in scores.select_dtypes("number") if name not in ("seed", "fold", TRUE_SPREAD)]
    summary = summarise(scores, metrics=metrics, **options)
    rows = []
    for name, each in scores.groupby("model", sort=False):
        finished = trainings.get(str(name), [])
        row = {"model": name, "people": each["scan"].map(lambda key: Scan.parse(key).subject).nunique()}
        if finished:
            row |= {
                "seeds": len({t.card.seed for t in finished}),
                "folds": len({t.fold for t in finished}),
                "trainings": len(finished),
                "commits": ", ".join(dict.fromkeys(t.card.short_commit or UNKNOWN for t in finished)),
                **_cost(finished, plan.models.get(str(name))),
                **_calibration(finished),
            }
        for metric, entry in summary[summary["model"] == name].set_index("metric").iterrows():
            row |= _with_interval(str(metric), entry["mean"], entry["low"], entry["high"])
        rows.append(row | _win_shares(each) | _stress_totals(finished))
    reference = studies[0].model.preset if studies[0].model.preset in trainings else next(iter(trainings))
    table = pd.DataFrame(rows)
    if "voxel_crps" in table:
        table = table.sort_values("voxel_crps", ignore_index=True)
    compared = scores[scores["model"] != TRUE_LAW]
    return Comparison(table, differences(compared, reference, **options), scores, reference)


def _scored_on_everyone(trainings: Mapping[str, list[Training]]) -> dict[str, list[Training]]:
    """The models with scores of all scans of which any model has some."""
    scans = {name: {scan for t in finished for scan in t.scores["scan"]} for name, finished in trainings.items()}
    everyone = set().union(*scans.values())
    return {name: finished for name, finished in trainings.items() if finished and scans[name] == everyone}


def with_bits_of_all(scores: pd.DataFrame) -> pd.DataFrame:
    """The table of scores without the bits of models that have those of some scans alone.

    The exact bits of closed forms need a fold without a large brain. A mean over the others would not compare.
    """
    if "bits_in_mask" not in scores:
        return scores
    complete = scores["bits_in_mask"].notna().groupby(scores["model"]).transform("all")
    return scores.assign(bits_in_mask=scores["bits_in_mask"].where(complete))


def _true_law(studies: Sequence[Config], scans: Sequence[CurrentScans | None]) -> Iterator[pd.DataFrame]:
    """Scores of the true law, by fold; none for measured data."""
    for fold, (config, current) in enumerate(zip(studies, scans, strict=True)):
        limits = current_ceilings(config, current) if current else None
        if limits is not None:
            yield limits[limits["model"] == TRUE_LAW].assign(fold=fold)


def _current_scans(config: Config) -> CurrentScans | None:
    """The scans of a study; None if its index or its preprocessing is not finished, so that no score is current."""
    try:
        return CurrentScans.of(config)
    except DataError:
        return None


def _finished(
    studies: Sequence[Config], scans: Sequence[CurrentScans | None], plan: Plan, name: str
) -> Iterator[Training]:
    """Trainings of a model that follow the plan, with scores as the workflow would compute them now."""
    for fold, (config, current) in enumerate(zip(studies, scans, strict=True)):
        if current is None:
            continue
        for seed in [seed for model, seed in config.trainings if model == name]:
            try:
                card = load_card(config.layout.model(name, seed))
            except CheckpointError:
                continue
            tables = current_scores(config, current, card)
            if tables is not None and _follows_plan(config, plan, card):
                benchmark = config.layout.benchmark(f"train/{training_key(name, seed)}")
                memory = read_typed_table(benchmark)["max_rss"] if benchmark.is_file() else pd.Series([np.nan])
                peak = float(pd.to_numeric(memory, errors="coerce").max())
                yield Training(card, fold, peak, tables["scans"], tables.get("stress"))


def _follows_plan(config: Config, plan: Plan, card: ModelCard) -> bool:
    """Whether a training took the plan's optimiser steps, pre-training included, with today's layers and options.

    A closed form takes no steps, and depends on the side information alone.
    """
    manifest = read_manifest(config.layout.training_manifest(card.name, card.seed), verify=False)
    if manifest is None or manifest["config"]["study"]["side"] != list(config.study.side):
        return False
    if card.name not in budgeted(config):
        return True
    budget, history = plan.models.get(card.name), config.layout.model(card.name, card.seed) / "history.tsv"
    if budget is None or budget.identity != step_identity(config, card.name) or not history.is_file():
        return False
    steps = int(read_typed_table(history)["step"].iloc[-1])
    if steps + card.training.pretrain_steps != budget.steps:
        return False
    planned = training_values(apply_plan(config, plan, [card.name]), card.name)
    planned.pop("model", None)  # of a network: its width is compared below
    if any(_options(manifest["config"].get(section, {})) != _options(now) for section, now in planned.items()):
        return False
    return _is_built_as_now(config, card)


def _is_built_as_now(config: Config, card: ModelCard) -> bool:
    """Whether a model has today's layers: the spec of a flow, or the width of a network, which may follow the flow's.

    The plan alone does not tell: a model whose new training failed may have as many steps as the new plan.
    """
    if card.name in config.flows:
        return card.spec == flow_spec(config.flows[card.name])
    _, options = build_baseline(config, card.name, card.shape, len(card.side.names), card.source_channels)
    return card.options == options


def _options(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a section beside the number of steps."""
    return {key: value for key, value in section.items() if key != "steps"}


def _cost(trainings: Sequence[Training], budget: ModelBudget | None) -> dict[str, float]:
    means = {key: float(np.mean([getattr(t.card.training, key) for t in trainings])) for key in CARD_SECONDS}
    first = trainings[0]
    best_step = float(np.mean([t.card.training.pretrain_steps + t.card.training.best_step for t in trainings]))
    steps = (
        {} if budget is None else {"steps": budget.steps, "best_step": best_step, "step_seconds": budget.step_seconds}
    )
    return {
        "parameters": first.card.parameters,
        **steps,
        "train_seconds": float(np.mean([t.card.training.seconds for t in trainings])),
        **{key: seconds for key, seconds in means.items() if seconds > 0},
        "total_seconds": float(np.mean([t.card.training.total_seconds for t in trainings])),
        "memory_mib": float(pd.Series([t.memory_mib for t in trainings]).max()),  # unknown ones do not count
    }


def _calibration(trainings: Sequence[Training]) -> dict[str, float]:
    """Mean NLL before and after calibration, in nats per voxel; empty without it."""
    facts = pd.DataFrame([t.card.training.calibration for t in trainings]).reindex(columns=list(CALIBRATION)).mean()
    return {name: float(facts[name]) for name in CALIBRATION if np.isfinite(facts[name])}


def _win_shares(scores: pd.DataFrame) -> dict[str, float]:
    """Each share of WINS with its interval, from the per-scan scores of one model."""
    row: dict[str, float] = {}
    for name, pair in WINS.items():
        if (check := subject_check(scores, *pair)) is not None:
            row |= _with_interval(name, check.share, check.low, check.high)
    return row


def _stress_totals(trainings: Sequence[Training]) -> dict[str, float]:
    """Totals of the stress tests over trainings; empty without a stress test."""
    tables = [t.stress for t in trainings if t.stress is not None]
    if not tables:
        return {}
    table = pd.concat(tables)
    return {"stress_samples": int(table["samples"].sum()), "stress_nonfinite": int(table["nonfinite_voxels"].sum())}


def _with_interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
