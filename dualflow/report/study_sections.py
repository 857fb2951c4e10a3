"""Tables of the study report, by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from dualflow.config import Config
from dualflow.data.tsv import read_table
from dualflow.evaluation.native import NATIVE_METRICS
from dualflow.evaluation.statistics import summarise
from dualflow.modalities import Modality, modality
from dualflow.models.card import ModelCard
from dualflow.report.analysis_section import analysis_tables
from dualflow.report.likelihood_tables import (
    bits_table,
    explained_table,
    explaining_flows,
    image_table,
    safety_table,
    source_table,
)
from dualflow.report.people_tables import demographics, group_scores, group_table, model_group_table, worst_people
from dualflow.report.region_agreement import agreement_table
from dualflow.report.study_results import BOUNDS, StudyResults
from dualflow.report.tables import Table, difference_table, metric_table, plain_table

IMAGE_METRICS = ("mae", "attainable_error", "rmse", "psnr", "ssim", "ms_ssim", "pearson_r")
REGION_METRICS = ("region_r", "region_icc", "region_mae", "region_bias", "ad_roi_error", "ad_roi_bias", "ad_roi_r")
SPREAD_METRICS = (
    "voxel_crps", "region_crps", "region_pit_distance", "voxel_sharpness", "sample_diversity", "spread_error_r",
)  # fmt: skip
COVERAGE_METRICS = (
    "voxel_coverage_50", "voxel_coverage_80", "voxel_coverage_95",
    "region_coverage_50", "region_coverage_80", "region_coverage_95",
)  # fmt: skip
INTERVALS = "Means over subjects; brackets are 95 % bootstrap intervals over subjects."
IMAGE_CAPTION = f"Image metrics on the model grid. {INTERVALS}"
REGION_CAPTION = (
    "Scores of region means on the model grid. ICC: absolute agreement. AD signature: inferior temporal, inferior "
    f"parietal and posterior cingulate regions; its r is a correlation over people. {INTERVALS}"
)
NATIVE_CAPTION = (
    "Image metrics of the conversions by seed {seed} of the main model in native space: on the grid of each subject's "
    "source scan, inside its brain mask there. Converted: {scored} of {all} test scans{missing}. The synthetic image "
    "is interpolated from the model grid, so it has no finer detail than that grid; the real one is interpolated once "
    f"from its own grid. {INTERVALS}"
)
SPREAD_CAPTION = (
    "Probabilistic scores of the predictive distributions. Region PIT distance: deviation of the probability integral "
    "transforms of a subject's regions from the uniform distribution. Sharpness compares calibrated models only. "
    "Sample diversity: distance between samples over that of a sample and the real image; 1 is ideal. "
    f"{INTERVALS}"
)
COVERAGE_CAPTION = f"Coverage of the central intervals of the predictive distributions. {INTERVALS}"
JOINT_METRICS = (
    "energy_score", "contrast_crps", "contrast_pit_distance", "person_spread_r", "person_spread_true_r",
)  # fmt: skip
JOINT_CAPTION = (
    "Joint scores of region means. Energy score: CRPS of the vector of all region means. Contrast: mean of the "
    "posterior meta-region minus that of the frontal one. PIT distance: deviation of its probability integral "
    "transform from the uniform distribution. Person spread r: correlation over people of the predicted spread of "
    "region means with their error, and with the spread of the true law where it is known."
)
BITS = ("bits_in_mask",)
PAIRED = (
    "Paired differences to {main} on the same subjects. Brackets: 95 % intervals of a paired bootstrap over subjects. "
    "p: Wilcoxon's signed-rank test over subjects, with Holm's adjustment over the models of a metric. A model is "
    "called better or worse only if the interval excludes zero and p is below 0.05."
)
COST_CAPTION = (
    "Cost of each training. Mean: the closed-form regression, fitted once for all models with the same mean. "
    "Initialisation of a flow: spread, whitening and the first values of its layers. Calibration: what is fitted after "
    "the steps, the law of regions and the width of the intervals."
)
SLACK = "Bits of flows are upper bounds. Within the slack: the slack of the larger bound can explain the difference."


def main_scores(config: Config, results: StudyResults) -> pd.DataFrame:
    """Scores of the main model with all seeds."""
    return results.scores[results.scores["model"] == config.model.preset]


def study_groups(config: Config, results: StudyResults, pairs: pd.DataFrame) -> pd.DataFrame:
    """Scores of all models by group of the test people, from `group_scores`; `pairs` is the index."""
    return group_scores(
        results.scores[~results.scores["model"].isin(results.ceilings)],
        pairs[pairs["split"] == "test"],
        read_table(config.layout.splits, labels=("subject",)),
        bootstrap=config.evaluate.bootstrap,
        seed=config.evaluate.seed,
    )


def _group_tables(groups: pd.DataFrame, row: Modality, main: str) -> list[Table]:
    """The scores of the main model by group and, beside others, the error of every model."""
    tables = [] if groups.empty else [group_table(groups, row, main)]
    return tables + ([model_group_table(groups, row)] if groups["model"].nunique() > 1 else [])


def section_tables(
    config: Config,
    results: StudyResults,
    pairs: pd.DataFrame,
    groups: pd.DataFrame,
    native: pd.DataFrame,
    agreement: pd.DataFrame,
    verdicts: Mapping[str, str],
) -> dict[str, list[Table]]:
    """Tables of each section of the report.

    Args:
        config: configuration of the study.
        results: its results.
        pairs: the index.
        groups: from `study_groups`.
        native: from `native_scores`.
        agreement: from `study_agreement`.
        verdicts: from `read_verdicts`.
    """
    row, main = modality(config.study.target), config.model.preset
    summary, ceilings = results.summary, results.ceilings
    paired, test = PAIRED.format(main=main), pairs[pairs["split"] == "test"]

    def scores(metrics: Sequence[str], caption: str) -> Table:
        """The means of these metrics; the caption says which rows are limits."""
        shown = set(summary.loc[summary["metric"].isin(metrics), "model"])
        limits = ", ".join(name for name in ceilings if name in shown)
        return metric_table(
            summary,
            row,
            metrics,
            f"{caption} Not models, but {BOUNDS}: {limits}." if limits else caption,
            without=ceilings,
        )

    def compared(metrics: tuple[str, ...]) -> list[Table]:
        """The differences of these metrics; none with one model."""
        return [] if results.differences.empty else [difference_table(results.differences, row, metrics, paired)]

    quality = read_table(config.layout.quality)
    people = worst_people(main_scores(config, results), test, quality, verdicts, row, main)
    return {
        "cohort": [demographics(pairs)],
        "regions": [agreement_table(agreement, row, main)],
        "groups": [*_group_tables(groups, row, main), people],
        "analyses": analysis_tables(config),
        "comparison": [
            scores(IMAGE_METRICS, IMAGE_CAPTION),
            scores(REGION_METRICS, REGION_CAPTION),
            *([] if native.empty else [_native_table(config, native, len(test), row)]),
            *compared(("mae", "pearson_r", "region_mae")),
        ],
        "uncertainty": [
            scores(SPREAD_METRICS, SPREAD_CAPTION),
            scores(COVERAGE_METRICS, COVERAGE_CAPTION),
            scores(JOINT_METRICS, JOINT_CAPTION),
            *compared(("voxel_crps", "region_crps", "energy_score", "contrast_crps")),
        ],
        "likelihood": _likelihood_tables(config, results, row, f"{paired} {SLACK}"),
        "training": [plain_table(_training_cost(results.cards), COST_CAPTION, digits=1)],
    }


def _likelihood_tables(config: Config, results: StudyResults, row: Modality, compared: str) -> list[Table]:
    """Densities of the models and what they explain; `compared` is the caption of their differences."""
    caption = (
        f"Negative log2 density per voxel of the mask, for intensities in {row.unit}. The background of a flow is "
        "integrated out; the density of a closed form is exact, and takes too long if a brain has more than "
        f"{config.evaluate.closed_form_voxels:,} voxels. Other models have no density of whole images."
    )
    tables = [metric_table(results.summary, row, BITS, caption), bits_table(results.likelihood, results.cards)]
    if results.summary.loc[results.summary["metric"].isin(BITS), "model"].nunique() > 1:
        tables.append(difference_table(results.differences, row, BITS, compared))
    tables += [source_table(results.likelihood), image_table(results.likelihood, row)]
    if flows := explaining_flows(results.cards):
        tables.append(explained_table(results.likelihood, flows))
    return [*tables, safety_table(results.likelihood, results.stress, row)]


def _native_table(config: Config, native: pd.DataFrame, scans: int, row: Modality) -> Table:
    summary = summarise(native, bootstrap=config.evaluate.bootstrap, seed=config.evaluate.seed)
    caption = NATIVE_CAPTION.format(
        seed=config.train.seeds[0],
        scored=len(native),
        all=scans,
        missing="" if len(native) == scans else ", whose scores may be better than those of the others",
    )
    return metric_table(summary, row, NATIVE_METRICS, caption, without=[config.model.preset])


def _training_cost(cards: dict[str, ModelCard]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Model": name,
                "Trained parameters": card.parameters,
                "Mean (s)": round(card.training.mean_seconds, 1),
                "Initialisation (s)": round(card.training.initialize_seconds, 1),
                "Optimiser steps (s)": round(card.training.seconds + card.training.pretrain_seconds, 1),
                "Calibration (s)": round(card.training.calibrate_seconds, 1),
                "Total (s)": round(card.training.total_seconds, 1),
                "Best step": card.training.best_step,
                "Skipped steps": card.training.skipped_steps,
            }
            for name, card in cards.items()
        ]
    )
