"""Conversion of a dataset: one task per raw scan, in worker processes; finished scans are skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import pandas as pd

from dualflow.config import ConvertConfig, StudyConfig
from dualflow.data.derivative_dataset import describe_derivatives
from dualflow.data.preprocessing_files import remove_preprocessed
from dualflow.data.quarantine import Quarantine, count_excluded, without_folders
from dualflow.data.raw_scans import is_excluded_for_good, prepare_scan
from dualflow.data.scan_files import ScanFiles
from dualflow.errors import ConfigError, DataError, PairingError
from dualflow.inference.conversion_files import remove_files
from dualflow.inference.conversion_record import STEP, card_digest, verdict_of
from dualflow.inference.conversion_table import FAILED, count_verdicts
from dualflow.inference.convert import Converter
from dualflow.inference.finished_scans import ScanState
from dualflow.inference.folder_tables import write_tables
from dualflow.inference.image_files import check_replaced, origin_of, scan_origin
from dualflow.inference.inputs import ConvertInputs
from dualflow.inference.output_folder import shared_name
from dualflow.inference.scan_conversion import convert_scan
from dualflow.layout import Layout, Scan
from dualflow.lifetime import exclusive
from dualflow.modalities import modality
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card
from dualflow.progress import progress
from dualflow.temporaries import sweep_temporaries
from dualflow.training.device import select_device
from dualflow.workers import CrashedTask, call_within, check_cluster, run_in_workers


@dataclass(frozen=True)
class Compute:
    """Where a conversion runs.

    Attributes:
        workers: number of processes on this machine, one core each; None fits cores and memory.
        cluster: where the workers run, as in `check_cluster`.
        device: device of the model: `auto`, `cpu` or `cuda`; workers take the GPUs of their machine in turn.
        deadline_s: seconds for the preprocessing of one scan; None takes those of the model's training.
        origin: whose results the scans may replace, as in `check_replaced`.
    """

    workers: int | None = None
    cluster: str = "local"
    device: str = "cpu"
    deadline_s: float | None = None

    def check(self) -> None:
        """Find an error before the work starts.

        Raises:
            ConfigError: `workers`, `device` or `cluster` is invalid, or `device` asks for a GPU and there is none.
        """
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers = {self.workers}: expected at least 1, or none to fit this machine")
        check_cluster(self.cluster, self.workers)
        if self.cluster == "local":  # the GPUs of other machines are not known here
            select_device(self.device, "--device")


def convert_study(
    scans: ConvertInputs,
    model: Path,
    out: Path,
    config: ConvertConfig,
    compute: Compute = Compute(),
    *,
    force: bool = False,
) -> pd.DataFrame:
    """Convert scans; return the table of their verdicts, whose rows are also written to conversion.tsv.

    Args:
        scans: the scans to convert.
        model: folder of a trained model; its card defines the preprocessing.
        out: folder of the BIDS derivative dataset to write.
        config: how samples are drawn.
        compute: where the work runs.
        force: convert refused scans too.

    Raises:
        ClusterError: the cluster cannot be joined, or its scheduler ended.
        DataError: there is no scan to convert.
    """
    layout = Layout(out.absolute(), ".")
    _require_usable(scans, layout)
    sweep_temporaries(out)
    describe_derivatives(layout, shared_name(out, scans.name), scans.study, targets=False)
    card = load_card(model)
    # The workers of a cluster have another working folder.
    options = Options(
        model.absolute(), model_digests(card), config, compute.device, force, compute.deadline_s, scans.origin
    )
    study = scans.study.model_copy(
        update={name: _absolute(getattr(scans.study, name)) for name in ("samples", "masks")}
    )
    rows = [row.to_frame().T for _, row in scans.rows.iterrows()]
    tasks = [(row, scans.root.absolute(), layout, study, options) for row in rows]
    finished = [_state(card, *task).recall() for task in tasks]
    excluded = [*scans.quarantined, *(result.excluded for result in finished if result and result.excluded)]
    tasks = [task for task, result in zip(tasks, finished, strict=True) if not result]
    counts = Counter[str]()
    with progress("convert", len(tasks)) as display:
        for result in _results(tasks, compute):
            if isinstance(result, Quarantine):
                excluded.append(result)
            counts[FAILED if isinstance(result, Quarantine) else result] += 1
            display.advance(note=count_verdicts(counts))
    return write_tables(layout, list(scans.rows["scan"]), [*excluded, *_lost(scans, layout, excluded)])


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _lost(scans: ConvertInputs, layout: Layout, excluded: Sequence[Quarantine]) -> Iterator[Quarantine]:
    """The scans that workers converted without a result here."""
    known = {row.scan for row in excluded}
    for key in scans.rows["scan"]:
        if key not in known and not layout.manifest(f"{STEP}/{key}").is_file():
            reason = "its result is not in the output folder; let the cluster's machines share it, under the same path"
            yield Quarantine(key, STEP, reason)


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
    write_tables(layout, (), excluded)
    raise DataError(
        f"no usable {source} scan, {count_excluded(excluded)}: {layout.quarantine} has the reasons, the first is "
        f"{excluded[0].scan}: {excluded[0].reason}"
    )


@dataclass(frozen=True)
class Options:
    """What all tasks of a conversion share, small enough to send with each.

    Attributes:
        model: folder of the model.
        digests: of its files; workers of a cluster may outlive a training that changes them.
        config: how samples are drawn.
        device: device of the model.
        force: whether refused scans are converted too.
        deadline_s: seconds for the preprocessing of one scan; None takes those of the model's training.
    """

    model: Path
    digests: tuple[str | None, ...]
    config: ConvertConfig
    device: str
    force: bool
    deadline_s: float | None
    origin: str | None


Result = Quarantine | str
"""Why a scan failed, or the verdict on it."""
Task = tuple[pd.DataFrame, Path, Layout, StudyConfig, Options]


def _results(tasks: list[Task], compute: Compute) -> Iterator[Result]:
    """Run the tasks in worker processes; yield their results in the order in which they finish."""
    for index, outcome in run_in_workers(_convert, tasks, compute.workers, compute.cluster):
        if isinstance(outcome, CrashedTask):
            row, _, layout, study, _ = tasks[index]
            scan = Scan.parse(row["scan"].iloc[0])
            with _scan_lock(layout, scan.key):
                # Remove the temporary files of the crashed process, and volumes that no manifest lists.
                sweep_temporaries(layout.derivatives / scan.folder)
                if not layout.scan_manifest(scan).is_file():
                    remove_preprocessed(layout, scan, study)
                if not layout.manifest(f"{STEP}/{scan.key}").is_file():
                    remove_files(layout, scan, modality(study.source), modality(study.target))
            yield Quarantine(scan.key, STEP, f"{Path(row['source'].iloc[0]).name}: {outcome.reason}")
        else:
            yield outcome


def _scan_lock(layout: Layout, key: str) -> AbstractContextManager[IO[str]]:
    """The lock of a scan: two commands that convert it would remove each other's files."""
    return exclusive(layout.lock(f"{STEP}/{key}"), f"{key}: another command converts it; waiting for it")


@lru_cache(maxsize=1)
def _load_converter(layout: Layout, source: str, target: str, options: Options) -> Converter:
    """Load the model once per worker process and conversion."""
    import torch

    torch.set_num_threads(1)
    device = select_device(options.device)
    return Converter.load(options.model, device, layout, source, target, options.config, force=options.force)


def model_digests(card: ModelCard) -> tuple[str | None, ...]:
    """Digests of the weights, the reference and the card of a model."""
    return card.weights_sha256, card.reference_sha256, card_digest(card)


def _raw_files(row: pd.DataFrame, root: Path, study: StudyConfig) -> tuple[dict[Any, Any], ScanFiles]:
    """The values of a row of the index, and its files without the target, which conversion does not read."""
    values = row.iloc[0].to_dict()
    return values, replace(ScanFiles.of_row(root, values, study), target=None)


def _state(
    card: ModelCard, row: pd.DataFrame, root: Path, layout: Layout, study: StudyConfig, options: Options
) -> ScanState:
    """What the result of a scan depends on."""
    values, files = _raw_files(row, root, study)
    sections = [section.model_dump(mode="json") for section in (card.preprocess, study, options.config)]
    model = [*model_digests(card), options.force]
    return ScanState.of(layout, Scan.parse(values["scan"]), files, [*model, *sections, values])


def _convert(row: pd.DataFrame, root: Path, layout: Layout, study: StudyConfig, options: Options) -> Result:
    """Preprocess and convert a scan, and record the result.

    Another command may have converted another image of the same label since the inputs were checked.
    """
    converter = _load_converter(layout, study.source, study.target, options)
    deadline = options.deadline_s or converter.predictor.card.preprocess.deadline_s
    scan, path = Scan.parse(row["scan"].iloc[0]), Path(row["source"].iloc[0])
    with _scan_lock(layout, scan.key):
        try:
            check_replaced(layout.root, root, {scan: path}, options.origin)
        except PairingError as error:
            return Quarantine(scan.key, STEP, without_folders(str(error), layout.root, root))
        state = _state(converter.predictor.card, row, root, layout, study, options)
        result = _convert_scan(converter, row, root, study, deadline)
        state.remember(result if isinstance(result, Quarantine) else None)
    return result


def _convert_scan(converter: Converter, row: pd.DataFrame, root: Path, study: StudyConfig, deadline_s: float) -> Result:
    """Preprocess and convert a scan unless that is done and unchanged.

    A scan that fails loses the volumes of an earlier conversion, which are of other files or settings. They stay if the
    reason may pass, such as a disk that is away or a crash before the model was used: the next attempt finds them
    valid, or replaces them.
    """
    (values, files), layout = _raw_files(row, root, study), converter.layout
    scan = Scan.parse(values["scan"])
    excluded = call_within(deadline_s, prepare_scan, layout, scan, files, study, converter.predictor.card.preprocess)
    if excluded is not None:
        if is_excluded_for_good(layout, scan):
            converter.remove(scan)
        return excluded
    folders = (layout.root, *files.folders)
    origin = scan_origin(origin_of(root, study), Path(values["source"]))
    result = convert_scan(converter, row, study, files.source, origin=origin, folders=folders)
    return result if isinstance(result, Quarantine) else verdict_of(result)
