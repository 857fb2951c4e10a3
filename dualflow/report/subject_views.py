"""Views of test people: the best, median and worst one, the mean error, native resolution, interactive planes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset
from dualflow.imaging.figure_canvas import SPREAD_MAP, TARGET_MAP
from dualflow.imaging.intensity import difference, scored_voxels
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.result_figure import ERROR_MAP
from dualflow.imaging.volume import read_volume
from dualflow.inference.convert import scan_seed
from dualflow.inference.predict import Prediction, Predictor
from dualflow.layout import Scan
from dualflow.modalities import modality
from dualflow.report.native_view import native_view
from dualflow.report.report_figure import ReportFigure, seed_note
from dualflow.report.shown_people import ShownPerson, shown_people
from dualflow.report.subject_figure import Column, Limits, limits, plane_grid, subject_figure
from dualflow.report.viewer import interactive_views


@dataclass(frozen=True)
class SubjectViews:
    """Views of test people.

    Attributes:
        figures: figures in reading order.
        viewers: pages of interactive views by name.
        viewer_note: who the interactive views show.
        median: the figure of the median person; of the best one with fewer than three.
    """

    figures: list[ReportFigure]
    viewers: dict[str, str]
    viewer_note: str
    median: ReportFigure


@dataclass(frozen=True)
class _Shown:
    """A person with the prediction that is drawn, and the verdict of the conversion on the scan."""

    person: ShownPerson
    item: Item
    prediction: Prediction
    verdict: str

    @property
    def volumes(self) -> dict[str, np.ndarray]:
        """Source, real target and mask `[D, H, W]`."""
        return {name: self.item[name][0].numpy() for name in ("source", "target", "mask")}

    @property
    def error(self) -> np.ndarray:
        """Error of the mean in the voxels that the score counts, `[V]`."""
        target = self.volumes["target"]
        return np.asarray((self.prediction.mean - target)[scored_voxels(target, self.volumes["mask"])])


def subject_views(
    config: Config,
    scores: pd.DataFrame,
    pairs: pd.DataFrame,
    predictor: Predictor,
    test: PairDataset,
    verdicts: Mapping[str, str],
) -> SubjectViews:
    """Draw test people with the main model.

    Args:
        config: configuration of the study.
        scores: one row per model, seed and scan.
        pairs: the test scans of the index.
        predictor: the main model with the first seed, which predicts the people shown.
        test: the test scans.
        verdicts: verdict of the conversion by scan.
    """
    people = shown_people(scores, config.model.preset, config.train.seeds[0])
    items = {str(item["scan"]): item for item in test.items}
    shown = [
        _Shown(
            person,
            items[person.scan],
            _predict(config, predictor, items[person.scan]),
            verdicts.get(person.scan, "not converted"),
        )
        for person in people
    ]
    scale, count = _common_scale(shown), len({Scan.parse(scan).subject for scan in items})
    figures = [_subject(config, view, scale, count) for view in shown]
    position = next(index for index, view in enumerate(shown) if view.person.role == "median" or len(shown) < 3)
    middle = shown[position]
    return SubjectViews(
        [*figures, *_mean_error(config, count), *_native(config, middle, pairs)],
        _viewers(config, middle, scale),
        f"{middle.person.scan}, the {middle.person.role} test subject",
        figures[position],
    )


def _predict(config: Config, predictor: Predictor, item: Item) -> Prediction:
    """The prediction of a scan, with the samples that conversion draws."""
    return predictor.predict(
        item["source"], item["side"], item["mask"],
        samples=config.convert.samples, temperature=config.convert.temperature,
        seed=scan_seed(config.convert.seed, Scan.parse(item["scan"])), keep=1,
    )  # fmt: skip


def _common_scale(shown: list[_Shown]) -> Limits:
    """One scale of errors and one of spreads for all people shown."""
    errors, spreads = [], []
    for view in shown:
        errors.append(view.error)
        spreads.append(view.prediction.std[view.volumes["mask"]])
    return limits(errors, spreads)


def _subject(config: Config, view: _Shown, scale: Limits, count: int) -> ReportFigure:
    person, row, volumes = view.person, modality(config.study.target), view.volumes
    title = f"{person.role}: {person.scan}, MAE {person.mae:.3f} {row.unit}"

    def draw(*, narrow: bool) -> Figure:
        samples = view.prediction.samples
        return subject_figure(
            volumes["source"], view.prediction.mean, view.prediction.std, volumes["mask"], row,
            source_row=modality(config.study.source), target=volumes["target"],
            sample=None if samples is None else samples[0], title=title, scale=scale, narrow=narrow,
        )  # fmt: skip

    error = view.error
    return ReportFigure(
        f"subject-{person.role}",
        draw(narrow=False),
        f"The {person.role} of {count} test subjects by mean absolute error ({person.scan}, MAE {person.mae:.3f} "
        f"{row.unit}, rank {person.rank}; verdict of the conversion: {view.verdict}). Real, mean and sample share one "
        "scale; differences share one scale with the other subjects shown, red is too high and blue too low. The mean "
        "is smoother than a real image; the sample shows one possible image, with the noise and detail that the mean "
        f"averages out.{seed_note(config.train.seeds)}",
        f"Axial, coronal and sagittal planes of {person.scan}: source, real image, synthetic mean, one sample, "
        f"difference and uncertainty. The difference averages {error.mean():+z.3f} {row.unit}, and 99 % of its voxels "
        f"are within {np.percentile(np.abs(error), 99):.2f} {row.unit}.",
        draw(narrow=True),
    )


def _mean_error(config: Config, count: int) -> list[ReportFigure]:
    """Maps of the mean error over the test people; none if the evaluation was made before there were maps."""
    row, main, seed = modality(config.study.target), config.model.preset, config.train.seeds[0]
    paths = {kind: config.layout.error_map(kind, main, seed) for kind in ("bias", "error")}
    if not all(path.is_file() for path in paths.values()):
        return []
    maps = {kind: read_volume(path, verified=True).array for kind, path in paths.items()}
    mask = maps["error"] > 0
    limit = limits([maps["bias"][mask]], [maps["error"][mask]])
    images = [
        Column("Mean signed error", maps["bias"], ERROR_MAP, (-limit.error, limit.error), row.unit),
        Column("Mean absolute error", maps["error"], SPREAD_MAP, (0.0, limit.spread), row.unit),
    ]
    peak = float(maps["error"].max())
    return [
        ReportFigure(
            "mean-error",
            plane_grid(images, mask, narrow=True),
            f"Error of {main} in template space, averaged over {count} test subjects, each subject's visits first. "
            "The signed error (red too high, blue too low) shows what the model gets wrong in everyone; the absolute "
            f"error also shows where people differ in ways that it does not predict.{seed_note(config.train.seeds)}",
            f"Maps of the mean signed and the mean absolute error in three planes. The signed error averages "
            f"{maps['bias'][mask].mean():+z.3f}, the absolute error {maps['error'][mask].mean():.3f} and at most "
            f"{peak:.2f} {row.unit}.",
        )
    ]


def _native(config: Config, shown: _Shown, pairs: pd.DataFrame) -> list[ReportFigure]:
    scan = shown.person.scan
    view = native_view(config, scan, str(pairs.set_index("scan")["source"][scan]))
    if view is None:
        return []
    figure, shape = view
    return [
        ReportFigure(
            "native",
            figure,
            f"{scan} on the grid of its own scan ({' x '.join(map(str, shape))} voxels), as dualflow convert writes "
            f"it; verdict of the conversion: {shown.verdict}. The synthetic image is interpolated once from the model "
            f"grid, so it is as smooth as that grid.{seed_note(config.train.seeds)}",
            f"Sagittal, coronal and axial planes of {scan} at native resolution: source, real, expected, difference, "
            "and standard deviation, with colour bars.",
        )
    ]


def _viewers(config: Config, view: _Shown, scale: Limits) -> dict[str, str]:
    row, volumes = modality(config.study.target), view.volumes
    error = difference(view.prediction.mean, volumes["target"], volumes["mask"])
    images = [
        Column("Real", volumes["target"], TARGET_MAP, row.window, row.unit),
        Column("Synthetic mean", view.prediction.mean, TARGET_MAP, row.window, row.unit),
        Column("Mean - real", error, ERROR_MAP, (-scale.error, scale.error), row.unit),
    ]
    return interactive_views(images, volumes["source"], volumes["mask"], model_grid(config.preprocess)[0])
