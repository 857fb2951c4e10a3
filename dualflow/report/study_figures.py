"""Figures of the study report by section, with captions that say how to read them and texts for who cannot see them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pandas as pd

from dualflow.config import Config
from dualflow.evaluation.agreement import agreement
from dualflow.evaluation.calibration import PIT_BINS
from dualflow.evaluation.metrics import correlation
from dualflow.evaluation.statistics import MIN_SUBJECTS
from dualflow.evaluation.study_metrics import measure
from dualflow.imaging.regions import mean_of_known, region_map
from dualflow.layout import training_key
from dualflow.modalities import Modality, modality
from dualflow.report.analysis_section import analysis_figures
from dualflow.report.figures import (
    metric_comparison,
    pit_histograms,
    region_scatter,
    reliability_curve,
    training_curves,
)
from dualflow.report.people_tables import shown_columns
from dualflow.report.region_figures import NAMED, WORST, agreement_plot, region_errors, side_effects
from dualflow.report.region_means import RegionMeans, readable
from dualflow.report.report_figure import ReportFigure, seed_note
from dualflow.report.study_results import BOUNDS, StudyResults, read_result
from dualflow.report.style import palette

PLOTTED_METRICS = ("mae", "psnr", "ssim", "pearson_r", "region_r", "region_mae")
CURVES = {"loss": "training loss", "validation/score": "validation score", "validation/mae": "validation MAE"}
MAX_SIDE_COLUMNS = 3
"""Number of side columns whose effects are drawn."""


def study_figures(config: Config, results: StudyResults, test: pd.DataFrame) -> dict[str, list[ReportFigure]]:
    """Figures drawn from the tables of evaluation, by section of the report.

    Args:
        config: configuration of the study.
        results: its results.
        test: the test scans of the index, with their side columns.
    """
    layout, row, main = config.layout, modality(config.study.target), config.model.preset
    first_seed = config.train.seeds[0]
    means = RegionMeans.from_table(read_result(layout.table(f"regions_{training_key(main, first_seed)}")))
    # All figures of the page share one colour per model.
    colours = palette([name for name in dict.fromkeys(results.summary["model"]) if name not in results.ceilings])
    stems = [training_key(name, seed) for name, seed in config.trainings if seed == first_seed]
    curves = pd.concat([read_result(layout.table(f"reliability_{stem}")) for stem in stems])
    # A study that an earlier version evaluated has none.
    histograms = [read_result(path) for stem in stems if (path := layout.table(f"pit_{stem}")).is_file()]
    regions = [
        _agreement(means, row, main),
        _errors(means, main),
        _scatter(means, row, main),
        *_effects(means, test, config, row, main),
    ]
    uncertainty = [_reliability(curves, colours, main), *_pit(histograms, colours, main)]
    seed = seed_note(config.train.seeds)
    return {
        "comparison": [_comparison(results.summary, row, colours, results.ceilings)],
        "regions": [replace(entry, caption=entry.caption + seed) for entry in regions],
        "analyses": analysis_figures(config),
        "uncertainty": [replace(entry, caption=entry.caption + seed) for entry in uncertainty],
        "training": _training(config, results),
    }


def _comparison(summary: pd.DataFrame, row: Modality, colours: dict[str, str], bounds: Collection[str]) -> ReportFigure:
    mae = summary[(summary["metric"] == "mae") & ~summary["model"].isin(bounds)].sort_values("mean")
    ranked = ", ".join(f"{entry['model']} {entry['mean']:.4f}" for entry in mae.to_dict("records"))
    limits = set(bounds) & set(summary["model"])
    means, warning = f"Means over fewer than {MIN_SUBJECTS} subjects, without intervals", ""
    if (mae["subjects"] >= MIN_SUBJECTS).any():
        means = "Means over subjects with 95 % bootstrap intervals"
        warning = (
            " Overlapping intervals do not show that two models are equal: the table of paired differences compares "
            "them on the same subjects."
        )
    return ReportFigure(
        "comparison",
        metric_comparison(summary, PLOTTED_METRICS, row, colours=colours, bounds=bounds, columns=3),
        f"{means}; one panel per metric, with the better direction below it.{warning}"
        f"{f' Grey rings are not models, but {BOUNDS}.' if limits else ''}",
        f"Dot plots of {len(PLOTTED_METRICS)} metrics by model. {measure('mae').heading(row)}, best first: {ranked}.",
        metric_comparison(summary, PLOTTED_METRICS, row, colours=colours, bounds=bounds, columns=1),
    )


def _agreement(means: RegionMeans, row: Modality, main: str) -> ReportFigure:
    limits = agreement(means.real, means.synthetic)
    named = ", ".join(readable(means.regions[index]) for index in means.worst(NAMED))
    return ReportFigure(
        "agreement",
        agreement_plot(means, row),
        f"Bland-Altman plot of {main}: each dot is a region of a test scan. Lines are the bias and the limits of "
        "agreement; a value of the real image lies within the limits of the synthetic one for about 95 % of the dots. "
        "A falling trend means that low values are too high and high values too low. Coloured: the regions with the "
        "largest errors. Regions of one subject are not independent, so the limits describe these scans.",
        f"Scatter of {limits.pairs} differences, synthetic minus real region mean, against their average. Bias "
        f"{limits.bias:+z.3f} {row.unit}, limits of agreement {limits.low:+z.3f} to {limits.high:+z.3f} {row.unit}, "
        f"{100 * limits.outside:.0f} % of the dots outside. Regions with the largest errors: {named}.",
        agreement_plot(means, row, narrow=True),
    )


def _errors(means: RegionMeans, main: str) -> ReportFigure:
    errors, worst = means.errors(), means.worst(WORST)
    named = ", ".join(f"{readable(means.regions[index])} {np.nanmean(errors[:, index]):+z.1f} %" for index in worst[:5])
    return ReportFigure(
        "regions",
        region_errors(means),
        f"Errors of {main} in the {len(worst)} regions with the largest mean absolute error, the largest first, and "
        "in all other regions together. A dot is a scan, the bar is their mean. Dots on one side of zero show a "
        "bias of the region; dots on both sides show that the region varies between scans in a way that the model "
        "does not predict.",
        f"Dot plot of signed errors in % of {len(worst)} named regions. Mean errors of the worst five: {named}.",
        region_errors(means, narrow=True),
    )


def _scatter(means: RegionMeans, row: Modality, main: str) -> ReportFigure:
    pairs = (means.real, means.synthetic)
    centred = [values - np.nanmean(values, axis=0) for values in pairs]
    r, r_people = (correlation(x.ravel(), y.ravel()) for x, y in (pairs, centred))
    return ReportFigure(
        "region-scatter",
        region_scatter(*pairs, row, model=main),
        "Real and synthetic region means: all regions of all test scans (left), and deviations from the mean of each "
        "region over scans (right). Dots on the dashed line agree. The left correlation is high for any model that "
        "knows the average brain; the right one shows what the model knows about a person.",
        f"Two scatter plots of synthetic against real region means. Correlation {r:.2f} over all region means"
        f"{'' if np.isnan(r_people) else f', {r_people:.2f} for differences between scans'}.",
        region_scatter(*pairs, row, model=main, narrow=True),
    )


def _effects(means: RegionMeans, test: pd.DataFrame, config: Config, row: Modality, main: str) -> list[ReportFigure]:
    side = test.set_index("scan").reindex(list(means.scans)).reset_index(drop=True)
    columns = shown_columns(test, config.study.side, MAX_SIDE_COLUMNS)
    groups = means.meta_regions(region_map(config.preprocess))
    if not columns or not groups:
        return []
    quantity = "uptake" if row.datatype == "pet" else "intensity"
    return [
        ReportFigure(
            "side-effects",
            side_effects(groups, side[list(columns)], row),
            f"Regional {quantity} of the test scans against side information, real and synthetic ({main}). Lines "
            "are least-squares fits, bars are means of a category. Lines that lie on each other show that the "
            "synthetic images keep the effect; a flatter synthetic line shows that they regress to the mean. AD "
            "signature: inferior temporal, inferior parietal and posterior cingulate regions.",
            f"Panels of {', '.join(groups)} against {', '.join(columns)}: real and synthetic {quantity}. "
            + _mean_gaps(groups, row),
            side_effects(groups, side[list(columns)], row, columns=2),
        )
    ]


def _mean_gaps(groups: dict[str, tuple[np.ndarray, np.ndarray]], row: Modality) -> str:
    gaps = [f"{name} {mean_of_known(synthetic - real):+z.3f}" for name, (real, synthetic) in groups.items()]
    return f"Mean of synthetic minus real, in {row.unit}: {', '.join(gaps)}."


def _reliability(curves: pd.DataFrame, colours: dict[str, str], main: str) -> ReportFigure:
    at = curves[(curves["model"] == main) & np.isclose(curves["level"], 0.8)].groupby("kind")["coverage"].mean()
    values = ", ".join(f"{100 * value:.0f} % of the {kind}s" for kind, value in at.items())
    return ReportFigure(
        "calibration",
        reliability_curve(curves, colours=colours),
        "Coverage of the central intervals against their nominal level. Curves above the diagonal indicate intervals "
        "that are too wide, curves below it intervals that are too narrow.",
        "Coverage against nominal level for voxels and region means, a line per model, beside the ideal diagonal."
        + (f" The 80 % intervals of {main} hold {values}." if values else ""),
        reliability_curve(curves, colours=colours, narrow=True),
    )


def _pit(tables: list[pd.DataFrame], colours: dict[str, str], main: str) -> list[ReportFigure]:
    if not tables:
        return []
    histograms = pd.concat(tables)
    ends = histograms["pit"].isin([histograms["pit"].min(), histograms["pit"].max()])
    shares = histograms[(histograms["model"] == main) & ends].groupby("kind")["share"].sum()
    values = ", ".join(f"{100 * share:.0f} % of the {kind}s" for kind, share in shares.items())
    expected = f"The outermost two of {PIT_BINS} bins of {main} should hold {200 / PIT_BINS:.0f} %, and hold {values}."
    return [
        ReportFigure(
            "pit",
            pit_histograms(histograms, colours=colours),
            "Where the real values lie in the predicted distributions: 0 is below the whole distribution, 1 above it. "
            "A flat line at 1 is calibrated. A valley means that distributions are too narrow, a hill that they are "
            "too wide. A rising line means that predictions are too low, a falling one that they are too high.",
            f"Histograms of the probability integral transforms, a line per model. {expected}",
            pit_histograms(histograms, colours=colours, narrow=True),
        )
    ]


def _training(config: Config, results: StudyResults) -> list[ReportFigure]:
    figures = []
    for name, seed in config.trainings:
        path = config.layout.model(name, seed) / "history.tsv"
        if not path.is_file():
            continue
        title, history = f"{name}, seed {seed}", read_result(path)
        step = int(results.cards[f"{name} seed {seed}"].training.best_step)
        scores = history.get("validation/score", pd.Series(dtype=float)).dropna()
        course = f" Validation score from {scores.iloc[0]:.4g} to {scores.iloc[-1]:.4g}." if len(scores) else ""
        figures.append(
            ReportFigure(
                f"training-{name}-{seed}",
                training_curves({title: history}, CURVES, best={title: step}),
                f"{title}. The dashed line marks the step whose weights are the model: the one with the lowest "
                "validation score, or the last one without validation. The score is the loss or, for a flow, the "
                "sum of its terms that concern the target. A score that rises after the line shows overfitting.",
                f"Training curves of {title} over {int(history['step'].max())} steps, best step {step}.{course}",
                training_curves({title: history}, CURVES, best={title: step}, narrow=True),
            )
        )
    return figures
