"""Which files of a BIDS dataset may serve as a scan's source or target, and which of them it really is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bids2table import parse_bids_entities

from dualflow.errors import DataError, PairingError
from dualflow.layout import Scan
from dualflow.modalities import Modality

EXTENSIONS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Candidate:
    """A file of the right kind.

    Attributes:
        path: relative to the dataset's root.
        tracer: its `trc-` label, if it has one.
    """

    path: Path
    tracer: str | None


def find_candidates(root: Path, row: Modality) -> tuple[dict[Scan, list[Candidate]], dict[str, DataError]]:
    """All files of a modality, by scan, and the folders that cannot be read as a scan with the reason.

    Only `sub-*/[ses-*/]DATATYPE/` is looked at, so derivatives and source data play no part. Names are taken apart by
    bids2table; its own `index_dataset` is not used because it finds nothing in a folder with a dot or a bracket in its
    name, such as `ds000001-1.0.0`.
    """
    found: dict[Scan, list[Candidate]] = defaultdict(list)
    refused: dict[str, DataError] = {}
    for pattern in (f"sub-*/{row.datatype}/sub-*", f"sub-*/ses-*/{row.datatype}/sub-*"):
        for file in sorted(root.glob(pattern)):
            entities = parse_bids_entities(file)
            if entities.get("suffix") != row.suffix or entities.get("ext") not in EXTENSIONS:
                continue
            path = file.relative_to(root)
            key = "_".join(path.parts[:-2])
            try:
                scan = Scan.parse(key)
                _require_same_scan(path, scan, entities)
            except DataError as error:
                refused[key] = error
                continue
            found[scan].append(Candidate(path, entities.get("trc")))
    return found, refused


def other_tracers(found: Mapping[Scan, list[Candidate]], row: Modality) -> list[str]:
    """The tracers that file names of the dataset give beside the modality's own, sorted."""
    labels = {candidate.tracer for candidates in found.values() for candidate in candidates}
    return sorted(label for label in labels if label and not _is_tracer(label, row))


def choose(root: Path, candidates: list[Candidate], row: Modality, others: list[str]) -> Path | None:
    """The one file of a scan, relative to `root`, or None if the scan has none of this modality.

    A file that names another tracer is none. One that names no tracer counts only where the dataset has one tracer.

    Raises:
        PairingError: there is more than one, or the file names no tracer among several.
        DataError: the file is a link that leaves the dataset or leads nowhere.
    """
    fitting = [file for file in candidates if file.tracer is None or _is_tracer(file.tracer, row)]
    if not fitting:
        return None
    names = ", ".join(file.path.name for file in fitting)
    if len(fitting) > 1:
        raise PairingError(f"{len(fitting)} files fit {row.tracer or row.suffix}: {names}; keep one in the dataset")
    path = fitting[0].path
    if row.tracer and fitting[0].tracer is None and others:
        raise PairingError(
            f"{names} names no tracer in a dataset that also has {', '.join(others)}; "
            f"add trc-{row.tracer} to the name or take the file out"
        )
    _require_inside(root, path)
    return path


def _require_inside(root: Path, path: Path) -> None:
    real = (root / path).resolve()
    if not real.is_relative_to(root.resolve()):
        raise DataError(f"{path} is a link that leaves the dataset; put the file itself there")
    if not real.is_file():
        raise DataError(f"{path} is a link to a file that is not there; fetch it (such as with datalad get)")


def _require_same_scan(path: Path, scan: Scan, entities: Mapping[str, str]) -> None:
    if (entities.get("sub"), entities.get("ses")) != (scan.subject, scan.session):
        raise PairingError(f"{path.name} lies in the folder of {scan.key}; make name and folder agree")


def _is_tracer(label: str, row: Modality) -> bool:
    """Whether a `trc-` label is the row's tracer; datasets write `FDG` and, with the isotope, `18FFDG`."""
    return row.tracer is not None and re.fullmatch(rf"(\d+[A-Z][a-z]?)?{row.tracer}", label, re.IGNORECASE) is not None
