"""Conversion of a dataset: one task per raw scan, in worker processes; finished scans are skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from dualflow.commit import sweep_temporaries
from dualflow.config import ConvertConfig, StudyConfig, checked
from dualflow.data.dataset import load_pairs
from dualflow.data.derivative_dataset import describe_derivatives
from dualflow.data.index import pair_scans
from dualflow.data.participants import known_columns
from dualflow.data.quarantine import Quarantine, count_excluded, write_quarantine
from dualflow.data.raw_scans import ScanFiles, prepare_scan
from dualflow.data.tsv import read_table
from dualflow.errors import CommitError, DataError, DualflowError
from dualflow.inference.convert import STEP, convert_if_needed
from dualflow.inference.finished_scans import ScanState
from dualflow.inference.predict import Predictor, load_predictor
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality
from dualflow.models.card import ModelCard
from dualflow.progress import track
from dualflow.training.device import select_device
from dualflow.workers import CrashedTask, check_cluster, run_in_workers


def convert_study(
    data: Path,
    model: Path,
    out: Path,
    config: ConvertConfig,
    workers: int | None = None,
    selection: Mapping[str, Any] | None = None,
    device: str = "cpu",
    cluster: str = "local",
) -> None:
    """Convert every scan of a dataset that has the model's source modalities.

    Args:
        data: root of a raw BIDS dataset, or a table of samples.
        model: folder of a trained model; its card defines the preprocessing.
        out: folder of the BIDS derivative dataset to write.
        config: how samples are drawn.
        workers: number of processes on this machine, one core each; None fits cores and memory.
        selection: fields `where`, `runs` and `masks` of the section `study`, which select the files of a scan.
        device: device of the model: `auto`, `cpu` or `cuda`; workers take the GPUs of their machine in turn.
        cluster: where the workers run, as in `check_cluster`.

    Raises:
        ConfigError: `selection` does not fit the dataset, `device` asks for a GPU and there is none, or `cluster` is
            invalid.
        ClusterError: the cluster cannot be joined, or its scheduler ended.
        DataError: the dataset cannot be read, or scans were excluded; then all others are converted.
    """
    check_cluster(cluster, workers)  # an error before the work starts
    if cluster == "local":  # the GPUs of other machines are not known here
        select_device(device, "--device")
    card = load_predictor(model).card
    table = data if data.is_file() else None
    root = data.parent if table else data
    columns = read_table(table).columns if table else known_columns(root)
    side = tuple(name for name in card.study.side if name in columns)
    values = {
        "name": "convert",
        "samples": table,
        "source": card.study.source,
        "extra_sources": card.study.extra_sources,
        "target": card.study.target,
        "side": side,
        **(selection or {}),
    }
    study = checked(StudyConfig, values, "convert")
    layout = Layout(out, ".")
    sweep_temporaries(out)
    index = pair_scans(root, study)
    describe_derivatives(layout, root.resolve().name, study)
    rows = [row for _, row in index.pairs.iterrows()]
    tasks = [(row.to_frame().T, root, model, layout, study, config, device) for row in rows]
    finished = [_state(card, row, root, layout, study, config).recall() for row, *_ in tasks]
    outcomes = [result.excluded for result in finished if result]
    tasks = [task for task, result in zip(tasks, finished, strict=True) if not result]
    outcomes += track(_outcomes(tasks, workers, cluster), f"convert {root.name}", len(tasks))
    excluded = sorted([*index.quarantined, *(outcome for outcome in outcomes if outcome is not None)])
    write_quarantine(layout.quarantine, excluded)
    if excluded:
        raise DataError(
            f"converted, but {count_excluded(excluded)}: {layout.quarantine} has the reasons, the first is "
            f"{excluded[0].scan}: {excluded[0].reason}"
        )


Task = tuple[pd.DataFrame, Path, Path, Layout, StudyConfig, ConvertConfig, str]


def _outcomes(tasks: list[Task], workers: int | None, cluster: str) -> Iterator[Quarantine | None]:
    """Run the tasks in worker processes; yield their results in the order in which they finish."""
    for index, outcome in run_in_workers(_convert, tasks, workers, cluster):
        if isinstance(outcome, CrashedTask):
            row, _, _, layout, *_ = tasks[index]
            scan = Scan.parse(row["scan"].iloc[0])
            # Remove the temporary files of the crashed process.
            sweep_temporaries(layout.derivatives / scan.folder)
            yield Quarantine(scan.key, STEP, f"{Path(row['source'].iloc[0]).name}: {outcome.reason}")
        else:
            yield outcome


@cache
def _load_predictor(model: Path, device: str) -> Predictor:
    """Load the model once per worker process."""
    import torch

    torch.set_num_threads(1)
    return load_predictor(model, select_device(device))


def _state(
    card: ModelCard, row: pd.DataFrame, root: Path, layout: Layout, study: StudyConfig, config: ConvertConfig
) -> ScanState:
    """What the result of a scan depends on."""
    values = row.iloc[0].to_dict()
    files = replace(ScanFiles.of_row(root, values, study), target=None)
    sections = [section.model_dump(mode="json") for section in (card.preprocess, study, config)]
    return ScanState.of(layout, Scan.parse(values["scan"]), files, [card.weights_sha256, *sections, values])


def _convert(
    row: pd.DataFrame, root: Path, model: Path, layout: Layout, study: StudyConfig, config: ConvertConfig, device: str
) -> Quarantine | None:
    """Preprocess and convert a scan, and record the result; return why it was excluded, or None."""
    state = _state(_load_predictor(model, device).card, row, root, layout, study, config)
    excluded = _convert_scan(row, root, model, layout, study, config, device)
    state.remember(excluded)
    return excluded


def _convert_scan(
    row: pd.DataFrame, root: Path, model: Path, layout: Layout, study: StudyConfig, config: ConvertConfig, device: str
) -> Quarantine | None:
    """Preprocess and convert a scan unless that is done and unchanged; return why it was excluded, or None."""
    predictor = _load_predictor(model, device)
    scan, source_row, target_row = Scan.parse(row["scan"].iloc[0]), modality(study.source), modality(study.target)
    files = replace(ScanFiles.of_row(root, row.iloc[0].to_dict(), study), target=None)
    excluded = prepare_scan(layout, scan, files, study, predictor.card.preprocess)
    if excluded is not None:
        return excluded
    try:
        item = load_pairs(layout, row.assign(target=""), study, predictor.card.side).items[0]
        convert_if_needed(predictor, item, layout, source_row, target_row, config)
    except CommitError:  # such as a full disk, which is no defect of the scan
        raise
    except Exception as error:  # a defective scan must not stop the others
        reason = str(error) if isinstance(error, DualflowError) else f"{type(error).__name__}: {error}"
        return Quarantine(scan.key, STEP, reason)
    return None
