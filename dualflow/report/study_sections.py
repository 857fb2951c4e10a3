"""Tables and figures of the study report, by section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dualflow.config import Config
from dualflow.data.dataset import PairDataset
from dualflow.inference.convert import scan_seed
from dualflow.inference.predict import Predictor
from dualflow.layout import Scan
from dualflow.modalities import modality
from dualflow.models.card import ModelCard
from dualflow.report.likelihood_tables import bits_table, explained_table, image_table, safety_table, source_table
from dualflow.report.study_results import StudyResults, read_result
from dualflow.report.tables import Table, difference_table, metric_table, plain_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_METRICS = ("mae", "psnr", "ssim", "pearson_r", "region_r", "region_mae", "region_bias")
SPREAD_METRICS = (
    "voxel_crps", "region_crps", "voxel_coverage_50", "voxel_coverage_80", "voxel_coverage_95",
    "region_coverage_50", "region_coverage_80", "region_coverage_95", "spread_error_r",
)  # fmt: skip
JOINT_METRICS = (
    "energy_score", "contrast_crps", "contrast_pit_distance", "person_spread_r", "person_spread_true_r",
)  # fmt: skip
PLOTTED_METRICS = IMAGE_METRICS[:6]
JOINT_CAPTION = (
    "Joint scores of region means. Energy score: CRPS of the vector of all region means. Contrast: mean of the "
    "posterior meta-region minus that of the frontal one. PIT distance: deviation of its probability integral "
    "transform from the uniform distribution. Person spread r: correlation over people of the predicted spread of "
    "region means with their error, and with the spread of the true law where it is known."
)
BITS = ("bits_in_mask",)
CURVES = {"loss": "training loss", "validation/loss": "validation loss", "validation/mae": "validation MAE"}
SHOWN_SUBJECTS = 3


def section_tables(config: Config, results: StudyResults) -> dict[str, list[Table]]:
    """Tables of each section of the report."""
    row, main = modality(config.study.target), config.model.preset
    paired = f"Paired differences to {main} on the same subjects, with 95 % intervals."
    bits = (
        f"Negative log2 density per voxel of the mask, for intensities in {row.unit}. The background is integrated out."
    )
    likelihood = [metric_table(results.summary, row, BITS, bits), bits_table(results.likelihood, results.cards)]
    if len(config.flows) > 1:
        likelihood.append(difference_table(results.differences, row, BITS, paired))
    likelihood += [
        source_table(results.likelihood),
        image_table(results.likelihood, row),
        explained_table(results.likelihood),
        safety_table(results.likelihood, results.stress, row),
    ]
    return {
        "comparison": [
            metric_table(
                results.summary, row, IMAGE_METRICS, "Image metrics on the model grid.", without=results.ceilings
            ),
            difference_table(results.differences, row, ("mae", "pearson_r", "region_mae"), paired),
        ],
        "uncertainty": [
            metric_table(
                results.summary,
                row,
                SPREAD_METRICS,
                "Probabilistic scores and coverage of the predictive distributions.",
                without=results.ceilings,
            ),
            metric_table(results.summary, row, JOINT_METRICS, JOINT_CAPTION, without=results.ceilings),
            difference_table(
                results.differences, row, ("voxel_crps", "region_crps", "energy_score", "contrast_crps"), paired
            ),
        ],
        "likelihood": likelihood,
        "training": [plain_table(_training_cost(results.cards), "Cost of each training.", digits=1)],
    }


def _training_cost(cards: dict[str, ModelCard]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Model": name,
                "Trained parameters": card.parameters,
                "Gradient training (s)": round(card.training.seconds + card.training.pretrain_seconds, 1),
                "Closed-form mean (s)": round(card.training.mean_seconds, 1),
                "Best step": card.training.best_step,
                "Skipped steps": card.training.skipped_steps,
            }
            for name, card in cards.items()
        ]
    )


def section_figures(
    config: Config, results: StudyResults, predictor: Predictor, test: PairDataset
) -> dict[str, list[tuple[str, Figure]]]:
    """Figures of each section of the report, as (caption, figure).

    Args:
        config: configuration of the study.
        results: its results.
        predictor: the main model, which predicts the subjects shown.
        test: the held-out scans.
    """
    from dualflow.report.figures import metric_comparison, region_scatter, reliability_curve, training_curves
    from dualflow.report.style import palette

    layout, row, main = config.layout, modality(config.study.target), config.model.preset
    first_seed = config.train.seeds[0]
    stems = [f"{name}_seed-{seed}" for name, seed in config.trainings if seed == first_seed]
    curves = pd.concat([read_result(layout.table(f"reliability_{stem}")) for stem in stems])
    region_means = read_result(layout.table(f"regions_{main}_seed-{first_seed}"))
    real, estimate = (
        region_means.pivot(index="scan", columns="region", values=column).to_numpy() for column in ("real", "estimate")
    )
    histories = {
        f"{name}, seed {seed}": read_result(path)
        for name, seed in config.trainings
        if (path := layout.model(name, seed) / "history.tsv").is_file()
    }
    # All figures of the page share one colour per model.
    colours = palette(list(dict.fromkeys(results.summary["model"])))
    figures = {
        "comparison": [
            (
                "Means over subjects with 95 % intervals.",
                metric_comparison(results.summary, PLOTTED_METRICS, row, colours=colours),
            ),
            (
                "Real and synthetic region means: all regions of all subjects (left), and deviations from the mean of "
                "each region over subjects (right).",
                region_scatter(real, estimate, row, model=main),
            ),
        ],
        "uncertainty": [
            (
                "Coverage of the central intervals against their nominal level. Curves above the diagonal indicate "
                "intervals that are too wide, curves below it intervals that are too narrow.",
                reliability_curve(curves, colours=colours),
            )
        ],
        "subjects": _subject_figures(config, predictor, test),
    }
    if histories:
        figures["training"] = [(name, training_curves({name: table}, CURVES)) for name, table in histories.items()]
    return figures


def _subject_figures(config: Config, predictor: Predictor, test: PairDataset) -> list[tuple[str, Figure]]:
    """The first held-out scans, with the samples that conversion draws."""
    from dualflow.report.subject_figure import subject_figure

    source_row, row = modality(config.study.source), modality(config.study.target)
    figures = []
    for item in test.items[:SHOWN_SUBJECTS]:
        prediction = predictor.predict(
            item["source"], item["side"], item["mask"],
            samples=config.convert.samples, temperature=config.convert.temperature,
            seed=scan_seed(config.convert.seed, Scan.parse(item["scan"])), keep=1,
        )  # fmt: skip
        figure = subject_figure(
            item["source"][0].numpy(), prediction.mean, prediction.std, item["mask"][0].numpy(), row,
            source_row=source_row, target=item["target"][0].numpy(),
            sample=None if prediction.samples is None else prediction.samples[0], title=item["scan"],
        )  # fmt: skip
        figures.append((f"{item['scan']}, held out. The left of the image is the left of the subject.", figure))
    return figures
