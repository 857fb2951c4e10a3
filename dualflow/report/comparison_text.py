"""A comparison of models as Markdown: tables that fit a page and line up on a terminal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from dualflow import __version__
from dualflow.config import Config
from dualflow.data.markdown import UNKNOWN, Column, markdown_table, p_statement, table
from dualflow.evaluation.calibration import LEVELS
from dualflow.evaluation.comparison_table import CALIBRATION, Comparison
from dualflow.evaluation.statistics import MIN_CORRELATED, MIN_SUBJECTS, is_within_slack
from dualflow.evaluation.study_metrics import TRUE_LAW, measure
from dualflow.modalities import Modality, modality
from dualflow.report.tables import WITHIN_SLACK, difference_digits
from dualflow.training.budget import Plan

MAIN = ("mae", "voxel_crps", "region_crps", "energy_score")
IMAGES = ("attainable_error", "rmse", "psnr", "ssim", "ms_ssim", "pearson_r")
REGIONS = ("region_r", "region_icc", "region_mae", "region_bias", "ad_roi_error", "ad_roi_bias", "ad_roi_r")
SPREAD = ("voxel_sharpness", "sample_diversity", "region_pit_distance", "spread_error_r")
JOINT = ("contrast_crps", "contrast_pit_distance", "person_spread_r", "person_spread_true_r")
DIFFERENCES = (*MAIN, "bits_in_mask")
COUNTS = [Column("seeds", ["seeds"], 0), Column("folds", ["folds"], 0), Column("people", ["people"], 0)]
COST = [
    Column("parameters", ["parameters"], 0),
    Column("steps", ["steps"], 0),
    Column("selected step", ["best_step"], 0),
    Column("s/step", ["step_seconds"]),
    Column("training (s)", ["train_seconds"], 0),
    Column("pre-training (s)", ["pretrain_seconds"], 0),
    Column("mean (s)", ["mean_seconds"], 0),
    Column("initialisation (s)", ["initialize_seconds"], 0),
    Column("calibration (s)", ["calibrate_seconds"], 0),
    Column("total (s)", ["total_seconds"], 0),
    Column("memory (MiB)", ["memory_mib"], 0),
    Column("s/sample", ["sample_seconds"]),
]
COVERAGE = [
    Column(
        f"{kind} coverage at {' / '.join(f'{100 * level:.0f}' for level in LEVELS)} %",
        [f"{kind}_coverage_{100 * level:.0f}" for level in LEVELS],
    )
    for kind in ("voxel", "region")
]
BITS = Column("bits per voxel of the mask", ["bits_in_mask"], 3, interval=True)
STRESS = [
    Column("stress samples", ["stress_samples"], 0),
    Column("non-finite voxels", ["stress_nonfinite"], 0),
]
EXPLAINED = {
    "explained_level_": "latent variance explained by level, finest first",
    "explained_other_level_": "explained by another subject's source",
}


def comparison_parts(
    result: Comparison, config: Config, plan: Plan, *, folds: int = 1, command: str = "dualflow compare"
) -> list[str]:
    """Markdown of a comparison: a paragraph that describes it, then tables of scores, differences, likelihood, cost.

    Args:
        result: the models that are trained and scored.
        config: the study's configuration.
        plan: steps of each model.
        folds: number of folds.
        command: the command that makes the comparison again.
    """
    row, frame = modality(config.study.target), result.table
    explained = [
        Column(heading, [str(name) for name in frame if str(name).removeprefix(prefix).isdigit()], 2)
        for prefix, heading in EXPLAINED.items()
    ]
    parts = [
        [*COUNTS, *(_metric(name, row) for name in MAIN), BITS],
        [*COVERAGE, *(_metric(name, row) for name in SPREAD)],
        *([_metric(name, row) for name in names] for names in (JOINT, IMAGES, REGIONS)),
        [*_likelihood(" + ".join(config.study.sources)), *(column for column in explained if column.names), *STRESS],
        COST,
    ]
    tables = [text for columns in parts if (text := table(frame, columns, heading="model"))]
    return [
        f"{_head(result, config, plan, folds)} {_origin(result, command)}",
        tables[0],
        *_differences(result, row),
        *tables[1:],
    ]


def _origin(result: Comparison, command: str) -> str:
    """Date, version and command of a comparison, and the commits of its trainings."""
    models = result.table.groupby("commits", sort=False)["model"].agg(", ".join)
    named = [f"{commits} ({names})" for commits, names in models.items()]
    code = f"; trained at commits {'; '.join(named)}"
    if len(models) == 1:
        code = "" if models.index[0] == UNKNOWN else f"; trained at commit {models.index[0]}"
    return f"Made on {datetime.now(UTC).date().isoformat()} by `{command}` (dualflow {__version__}{code})."


def _head(result: Comparison, config: Config, plan: Plan, folds: int) -> str:
    unit, people = modality(config.study.target).unit, int(result.table["people"].max())
    split = f"{folds} folds, each person tested once per seed" if folds > 1 else "one split"
    few = ""
    if people < MIN_SUBJECTS:
        few = f" With fewer than {MIN_SUBJECTS} people there is no interval, except of shares."
    elif people < MIN_CORRELATED:
        few = f" With fewer than {MIN_CORRELATED} people scores over people have no interval."
    law = ""
    if TRUE_LAW in set(result.table["model"]):
        law = f" {TRUE_LAW}: draws from the law of the simulation; no model is better on average."
    return (
        f"{config.study.name}: {plan.seconds:g} s of optimiser steps per model, {config.train.threads} thread(s) of "
        f"{plan.machine['processor']} ({plan.machine['instructions']}), torch {plan.machine['torch']}; {split}; "
        f"{people} held-out {'simulated ' if config.embedded else ''}people, seeds "
        f"{', '.join(map(str, config.train.seeds))} (closed forms: the first). Parentheses: 95 % bootstrap intervals "
        f"over people, seeds averaged first, and Wilson intervals of shares.{few} Scores are those of the grid of "
        f"{config.preprocess.spacing_mm:g} mm, inside the brain mask (docs/reference/tables.md); lines are sorted by "
        f"voxel CRPS.{law} Bits: negative log2 density of the intensities in {unit}, for models with an exact density; "
        "a density above 1 gives negative bits. NLL before and after calibration: of validation subjects or, where "
        "they are too few, of training subjects by cross-fitting, per voxel of the grid. Selected step: that of the "
        "best validation. Both are means over trainings. Memory: peak of the training process."
    )


def _differences(result: Comparison, row: Modality) -> list[str]:
    """The paired differences to the reference below a sentence on their statistics; none with one model."""
    frame = result.differences[result.differences["metric"].isin(DIFFERENCES)]
    metrics = [name for name in DIFFERENCES if name in set(frame["metric"])]
    if not metrics:
        return []
    cells = {(entry["model"], entry["metric"]): _difference(entry) for entry in frame.to_dict("records")}
    models = list(dict.fromkeys(frame["model"]))
    rows = [["model", *(measure(name).heading(row) for name in metrics)]]
    rows += [[model, *(cells.get((model, name), UNKNOWN) for name in metrics)] for model in models]
    text = (
        f"Paired differences to {result.reference} on the same people; below 0 is better than it. Parentheses: 95 % "
        "paired bootstrap interval. p: Wilcoxon signed-rank test, Holm-adjusted over the models of a column."
    )
    if any(is_within_slack(entry) for entry in frame.to_dict("records")):
        text += f" Bits of flows are upper bounds. {WITHIN_SLACK}: that of the larger bound can explain the difference."
    return [f"{text}\n\n{markdown_table(rows)}"]


def _difference(entry: Mapping[Hashable, Any]) -> str:
    if entry["verdict"] == "equal":
        return "equal by construction"
    form = f"+z.{difference_digits(entry, measure(entry['metric']).digits)}f"
    value, low, high, p = (entry[key] for key in ("difference", "low", "high", "p_holm"))
    if np.isnan(low):
        return f"{value:{form}} ({entry['subjects']} people: no interval)"
    slack = f", {WITHIN_SLACK}" if is_within_slack(entry) else ""
    return f"{value:{form}} ({low:{form}} to {high:{form}}), {p_statement(p)}{slack}"


def _likelihood(source: str) -> list[Column]:
    return [
        Column("slack of the bits", ["bits_slack"]),
        Column("NLL before / after calibration (nats)", list(CALIBRATION), 4),
        Column(f"true {source} likelier than another subject's (%)", ["true_beats_wrong"], 0, interval=True, scale=100),
        Column("than its blur (%)", ["true_beats_blurred"], 0, interval=True, scale=100),
    ]


def _metric(name: str, row: Modality) -> Column:
    return Column(measure(name).heading(row), [name], measure(name).digits, interval=True)
