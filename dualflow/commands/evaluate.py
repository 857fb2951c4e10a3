"""Score trained models on the held-out scans."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.commands.model_runs import (
    PICTURE,
    SLACKS,
    TEST,
    describe_model,
    evaluation_tags,
    log_datasets,
    model_parameters,
    model_run,
    score_names,
    study_view,
    training_of,
)
from dualflow.commands.true_law import attainable_target
from dualflow.commit import commit_text
from dualflow.config import Config, dump_sections
from dualflow.data.dataset import Item, PairDataset
from dualflow.data.study_pairs import load_split, scan_digests, usable_pairs
from dualflow.data.tsv import summarise_names, table_text
from dualflow.errors import ConfigError, DataError, IntensityError
from dualflow.evaluation.calibration import calibration_cases, over_subjects, pit_histogram, reliability
from dualflow.evaluation.current_scores import score_inputs
from dualflow.evaluation.downstream import classify, feature_sets, require_no_leakage
from dualflow.evaluation.mean_error import MeanError
from dualflow.evaluation.metrics import score
from dualflow.evaluation.scan_scores import closed_form_bits, flow_scores, with_exact_bits
from dualflow.evaluation.statistics import subject_means
from dualflow.evaluation.stress import stress
from dualflow.evaluation.study_metrics import study_scores
from dualflow.flows.model import DualFlow
from dualflow.imaging.affines import MNI
from dualflow.imaging.intensity import scored_voxels
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.imaging.volume import write_volume
from dualflow.inference.convert import scan_seed
from dualflow.inference.predict import Prediction, Predictor, load_predictor
from dualflow.layout import Layout, Scan, training_key
from dualflow.manifest import read_manifest, write_manifest
from dualflow.modalities import modality
from dualflow.process import keep_freed_memory
from dualflow.progress import track
from dualflow.tracking.tracked_run import Run
from dualflow.training.device import select_device


class _ScoredScans(NamedTuple):
    """A model's results on the test scans.

    Attributes:
        scores: one row per scan.
        reliability: coverage at each nominal level, mean over people.
        pit: histogram of the probability integral transforms, mean over people.
        region_means: region means of each scan `[3, R]`: real, estimated over the same voxels, and estimated over all
            voxels of the region.
        errors: maps of the errors, mean over people.
        picture: the first scan as PNG.
    """

    scores: pd.DataFrame
    reliability: pd.DataFrame
    pit: pd.DataFrame
    region_means: list[NDArray[np.float64]]
    errors: MeanError
    picture: bytes


def evaluate(config: Config, names: Sequence[str], seed: int) -> None:
    """Score the models `names` on the test scans, one after the other, on the device of the training.

    Raises:
        DataError: there are no test scans, or a model learnt from the people in them.
    """
    keep_freed_memory()
    device = select_device(config.train.device)
    predictors = {name: load_predictor(config.layout.model(name, seed), device) for name in names}
    pairs, regions = usable_pairs(config), region_map(config.preprocess)
    for name, predictor in predictors.items():
        _evaluate(config, name, seed, predictor, pairs, regions)


def _evaluate(
    config: Config, name: str, seed: int, predictor: Predictor, pairs: pd.DataFrame, regions: RegionMap
) -> None:
    layout, test = config.layout, load_split(config, pairs, "test", predictor.card.side)
    if not len(test):
        raise DataError(
            f"{config.study.name}: no test scan to score; give split.test a share, name test_subjects, or mend the "
            f"scans in {layout.quarantine}"
        )
    _require_unseen(layout, name, seed, test.subjects)
    digests = scan_digests(layout, test.scans)
    results = _score_scans(config, name, seed, predictor, test, regions)
    stem = training_key(name, seed)
    tables = {
        layout.table(f"scans_{stem}"): results.scores,
        layout.table(f"reliability_{stem}"): results.reliability,
        layout.table(f"pit_{stem}"): results.pit,
        layout.table(f"regions_{stem}"): _region_table(test.scans, regions.names, results.region_means),
    }
    if config.evaluate.classify:
        means = results.region_means
        tables[layout.downstream(name, seed)] = _downstream(config, predictor, pairs, test, regions, means)
    if config.evaluate.stress and predictor.flow is not None:
        tables[layout.stress(name, seed)] = _stress(predictor.flow, test, config, f"{name}, seed {seed}")
    for path, table in tables.items():
        commit_text(path, table_text(table))
    for path in {layout.downstream(name, seed), layout.stress(name, seed)} - tables.keys():
        path.unlink(missing_ok=True)  # of other options, and perhaps another training
    maps = {}
    for kind, volume in results.errors.maps().items():
        maps[f"{kind}_map"] = path = layout.error_map(kind, name, seed)
        write_volume(path, volume, model_grid(config.preprocess)[0], codes=MNI)
    with model_run(config, name, seed, training_of(layout, name, seed), continues=True) as run:
        _log(run, config, predictor, pairs, digests, results.scores)
        run.picture(results.picture, PICTURE)
        run.finish()
        write_manifest(
            layout.manifest(f"evaluate/{stem}"),
            step="evaluate",
            outputs={path.stem.removesuffix(f"_{stem}"): path for path in tables} | maps,
            inputs=score_inputs(predictor.card.weights_sha256, digests, [item["side"] for item in test.items]),
            config=dump_sections(config.evaluate, config.convert),
        )


def _require_unseen(layout: Layout, name: str, seed: int, subjects: Sequence[str]) -> None:
    """Check that a training, and the choice of its weights, did not see the people to score."""
    manifest = read_manifest(layout.training_manifest(name, seed), verify=False)
    learnt = {Scan.parse(key).subject for key in manifest["inputs"]} if manifest else set()
    if known := sorted(learnt & set(subjects)):
        raise DataError(
            f"{name}, seed {seed}: learnt from {len(known)} of the test people: {summarise_names(known)}; the splits "
            "have changed since, so train it again"
        )


def _score_scans(
    config: Config, name: str, seed: int, predictor: Predictor, test: PairDataset, regions: RegionMap
) -> _ScoredScans:
    """Predict each test scan and compare it with the measured target."""
    row, visits = modality(config.study.target), Counter(test.subjects)
    rows, curves, histograms, region_means, picture = [], [], [], [], b""
    errors, closed_form = MeanError(config.preprocess.shape), with_exact_bits(predictor.model, test, config)
    for index, item in enumerate(track(test.items, f"evaluate {name}, seed {seed}")):
        scan, mask, target = Scan.parse(item["scan"]), item["mask"][0].numpy(), item["target"][0].numpy()
        shown = scored_voxels(target, mask)
        measured = regions.measured(shown, mask)
        prediction = _predict(predictor, item, config)
        density = flow_scores(predictor.flow, test, index, prediction, config)
        if closed_form is not None:
            density |= closed_form_bits(closed_form, item)
        attainable = attainable_target(config, scan, mask)
        scores = score(prediction, target, shown, measured, row, density.get("bits_in_mask"), attainable)
        if index == 0:
            picture = _picture(config, item, prediction, scores["mae"])
        rows.append({"model": name, "seed": seed, "scan": item["scan"], **scores, **density})
        cases = calibration_cases(prediction, target, shown, measured)
        curves.append(reliability(cases).assign(model=name, subject=scan.subject))
        histograms.append(pit_histogram(cases).assign(model=name, subject=scan.subject))
        errors.add(prediction.mean, target, shown, weight=1 / visits[scan.subject])
        real, whole = regions.measured_means(target, mask), regions.means(prediction.mean, mask)
        region_means.append(np.stack([real, measured.means(prediction.mean, shown), whole]))
    calibration = over_subjects(curves, "level"), over_subjects(histograms, "pit")
    return _ScoredScans(pd.DataFrame(rows), *calibration, region_means, errors, picture)


def _log(
    run: Run,
    config: Config,
    predictor: Predictor,
    pairs: pd.DataFrame,
    digests: Mapping[str, str],
    scans: pd.DataFrame,
) -> None:
    """Log the scores of the test people, their scans and a description to the run of the training."""
    card = predictor.card
    scores, slacks = (
        {str(name): float(value) for name, value in means.select_dtypes("number").mean().items()}
        for means in (subject_means(scans), subject_means(scans, SLACKS))
    )
    scores |= study_scores(scans)
    # For a training that was tracked elsewhere.
    run.parameters(model_parameters(config, card.name, card.seed, card.training.precision) | card.options)
    run.tags(evaluation_tags(config))
    run.scores(score_names(scores | slacks, config), TEST)
    log_datasets(run, config, pairs, digests, "test")
    run.describe(describe_model(config, card.name, card.seed, scores))
    run.view(study_view(config))


def _picture(config: Config, item: Item, prediction: Prediction, mae: float) -> bytes:
    """The first test scan as PNG: source, measured target, prediction, a sample if there is one, error and spread."""
    from dualflow.report.style import to_page_png
    from dualflow.report.subject_figure import subject_figure

    row = modality(config.study.target)
    figure = subject_figure(
        item["source"][0].numpy(),
        prediction.mean,
        prediction.std,
        item["mask"][0].numpy(),
        row,
        source_row=modality(config.study.source),
        target=item["target"][0].numpy(),
        sample=None if prediction.samples is None else prediction.samples[0],
        title=f"{item['scan']}: mean absolute error {mae:.3f} {row.unit}",
    )
    return to_page_png(figure)


def _predict(predictor: Predictor, item: Item, config: Config) -> Prediction:
    """Predict a test scan.

    Raises:
        IntensityError: the prediction is not finite; scores without this scan would mislead.
    """
    try:
        return predictor.predict(
            item["source"],
            item["side"],
            item["mask"],
            samples=config.evaluate.samples,
            temperature=config.convert.temperature,
            seed=scan_seed(config.evaluate.seed, Scan.parse(item["scan"])),
        )
    except IntensityError as error:
        raise IntensityError(f"{predictor.card.label}, {item['scan']}: {error}") from error


def _downstream(
    config: Config,
    predictor: Predictor,
    pairs: pd.DataFrame,
    test: PairDataset,
    regions: RegionMap,
    region_means: list[NDArray[np.float64]],
) -> pd.DataFrame:
    """Classification of the test people, whom the model never saw, by real, source and synthetic region means.

    Raises:
        ConfigError: the model knows the column, or another one that tells it.
    """
    column, side = str(config.evaluate.classify), [one.name for one in predictor.card.side.columns]
    if column in side:
        raise ConfigError(
            f"{predictor.card.label} takes {column} as side information, so its synthetic target gives the answer "
            "away; train a model without it"
        )
    require_no_leakage(column, side, pairs)
    images = slice(predictor.card.source_channels)
    sources = [regions.means(item["source"][images].numpy(), item["mask"][0].numpy()).ravel() for item in test.items]
    real, synthetic = (np.stack([means[index] for means in region_means]) for index in (0, 2))
    labels = pairs.set_index("scan").loc[test.scans, column]
    known = labels.notna().to_numpy()
    features = feature_sets(real, np.stack(sources), synthetic)
    subjects = [subject for subject, is_known in zip(test.subjects, known, strict=True) if is_known]
    chosen = {name: values[known] for name, values in features.items()}
    return classify(chosen, labels[known].astype(str).tolist(), subjects, config.evaluate.seed)


def _stress(model: DualFlow, test: PairDataset, config: Config, label: str) -> pd.DataFrame:
    """Table of the stress test; non-finite voxels are also reported on standard error."""
    samples = config.evaluate.stress
    table = stress(model, test, samples, config.evaluate.seed, f"stress {label}")
    if nonfinite := int(table["nonfinite_voxels"].sum()):
        print(f"warning: {label}: {nonfinite} voxels of {samples} samples are not finite", file=sys.stderr)
    return table


def _region_table(scans: list[str], names: tuple[str, ...], means: list[NDArray[np.float64]]) -> pd.DataFrame:
    """Real and estimated mean of each region of each scan."""
    return pd.DataFrame(
        [
            (scan, region, real, estimate)
            for scan, pair in zip(scans, means, strict=True)
            for region, real, estimate in zip(names, pair[0], pair[1], strict=True)
        ],
        columns=["scan", "region", "real", "estimate"],
    )
