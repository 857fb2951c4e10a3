"""Conversion of a dataset: one task per raw scan, in worker processes; finished scans are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from dualflow.commit import sweep_temporaries
from dualflow.config import ConvertConfig, StudyConfig
from dualflow.data.dataset import load_pairs
from dualflow.data.derivative_dataset import describe_derivatives
from dualflow.data.quarantine import Quarantine, count_excluded, write_quarantine
from dualflow.data.raw_scans import ScanFiles, prepare_scan
from dualflow.errors import CommitError, DataError, DualflowError
from dualflow.inference.convert import STEP, convert_if_needed
from dualflow.inference.inputs import ConvertInputs
from dualflow.inference.predict import Predictor, load_predictor
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality
from dualflow.progress import track
from dualflow.training.device import select_device
from dualflow.workers import CrashedTask, run_in_workers


def convert_study(
    scans: ConvertInputs, model: Path, out: Path, config: ConvertConfig, workers: int = 1, device: str = "cpu"
) -> list[str]:
    """Convert scans; return the keys of those that are converted now or were before.

    Args:
        scans: the scans to convert.
        model: folder of a trained model; its card defines the preprocessing.
        out: folder of the BIDS derivative dataset to write.
        config: how samples are drawn.
        workers: number of processes, one core each.
        device: device of the model: `auto`, `cpu` or `cuda`; all workers share one GPU.

    Raises:
        DataError: scans were excluded; all others are converted.
    """
    layout = Layout(out, ".")
    _require_usable(scans, layout)
    sweep_temporaries(out)
    describe_derivatives(layout, scans.name, scans.study)
    rows = [row for _, row in scans.rows.iterrows()]
    tasks = [(row.to_frame().T, scans.root, model, layout, scans.study, config, device) for row in rows]
    outcomes = list(track(_outcomes(tasks, workers), "convert", len(tasks)))
    excluded = sorted([*scans.quarantined, *(outcome for outcome in outcomes if outcome is not None)])
    write_quarantine(layout.quarantine, excluded)
    if excluded:
        raise DataError(
            f"converted, but {count_excluded(excluded)}: {layout.quarantine} has the reasons, the first is "
            f"{excluded[0].scan}: {excluded[0].reason}"
        )
    return [str(key) for key in scans.rows["scan"]]


def _require_usable(scans: ConvertInputs, layout: Layout) -> None:
    """Check that there is a scan to convert; otherwise write the reasons.

    Raises:
        DataError: there is none.
    """
    if len(scans.rows):
        return
    excluded, source = scans.quarantined, scans.study.source
    if not excluded:
        raise DataError(f"the input has no {source} scan; check it, and that the model's source is the one you mean")
    write_quarantine(layout.quarantine, excluded)
    raise DataError(
        f"no usable {source} scan, {count_excluded(excluded)}: {layout.quarantine} has the reasons, the first is "
        f"{excluded[0].scan}: {excluded[0].reason}"
    )


Task = tuple[pd.DataFrame, Path, Path, Layout, StudyConfig, ConvertConfig, str]


def _outcomes(tasks: list[Task], workers: int) -> Iterator[Quarantine | None]:
    """Run the tasks in worker processes; yield their results in the order in which they finish."""
    for index, outcome in run_in_workers(_convert, tasks, workers):
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


def _convert(
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
