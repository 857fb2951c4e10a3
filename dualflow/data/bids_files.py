"""Which files of a BIDS dataset may serve as a scan's source or target, and which of them it really is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bids2table import parse_bids_entities

from dualflow.config import StudyConfig
from dualflow.errors import ConfigError, DataError, PairingError, printable
from dualflow.layout import Scan, study_mask_paths
from dualflow.modalities import Modality, modality

EXTENSIONS = (".nii", ".nii.gz")
_NOT_CHOSEN_BY = ("sub", "ses", "datatype", "suffix", "ext")

Files = dict[Scan, dict[str, Path]]
"""Scan -> modality name -> file, relative to the root of the study."""
Refused = dict[str, DataError]
"""Key of a scan -> why it cannot be used."""
Candidates = Mapping[Scan, list["Candidate"]]


@dataclass(frozen=True)
class Candidate:
    """A file of the right kind.

    Attributes:
        path: relative to the dataset's root.
        entities: what its name says beside subject, session and suffix, such as `acq` or `run`.
    """

    path: Path
    entities: Mapping[str, str]

    def label(self, entity: str) -> str:
        """Label of an entity; '' where the name does not have it."""
        return self.entities.get(entity, "")


def find_scans(root: Path, study: StudyConfig) -> tuple[Files, Refused]:
    """The files of a study's modalities in a BIDS dataset, and the scans that cannot be used with the reason.

    A file that names another tracer is none of its modality's. One that names no tracer counts only where the dataset
    has one tracer, or where `study.where` speaks of tracers.

    Raises:
        DataError: there is no dataset at `root`.
        ConfigError: `study.where` asks for what no file has.
    """
    _require_dataset(root)
    files: Files = defaultdict(dict)
    refused: Refused = {}
    for name in study.modalities:
        row, where = modality(name), study.where.get(name, {})
        found, unreadable = find_candidates(root, row)
        others = [] if "trc" in where else other_tracers(found, row)
        fitting = {scan: [file for file in found[scan] if _may_be(file, row)] for scan in found}
        refused.update(unreadable)
        for scan, candidates in select(fitting, name, where).items():
            try:
                path = choose(candidates, name, study.runs, others)
                if path is not None:
                    require_inside(root, path)
                    files[scan][name] = path
            except DataError as error:
                refused[scan.key] = error
    return files, refused


def find_candidates(root: Path, row: Modality) -> tuple[Candidates, Refused]:
    """All files of a modality, whatever their tracer, and the folders that cannot be read as a scan with the reason.

    Only `sub-*/[ses-*/]DATATYPE/` is looked at, so derivatives and source data play no part. Names are taken apart by
    bids2table; its own `index_dataset` is not used because it finds nothing in a folder with a dot or a bracket in its
    name, such as `ds000001-1.0.0`.
    """
    found: dict[Scan, list[Candidate]] = defaultdict(list)
    refused: Refused = {}
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
                refused[printable(key)] = error
                continue
            chosen_by = {entity: str(entities[entity]) for entity in entities if entity not in _NOT_CHOSEN_BY}
            found[scan].append(Candidate(path, chosen_by))
    return found, refused


def other_tracers(found: Candidates, row: Modality) -> list[str]:
    """The tracers that file names of the dataset give beside the modality's own, sorted."""
    labels = {file.label("trc") for files in found.values() for file in files if not _may_be(file, row)}
    return sorted(labels)


def select(found: Candidates, name: str, where: Mapping[str, str]) -> Candidates:
    """The candidates of modality `name` whose entities are those of `where`; '' means that the name lacks the entity.

    Raises:
        ConfigError: no file has what is asked for, while there are files of the modality.
    """
    for entity, label in where.items():
        files = [file for candidates in found.values() for file in candidates]
        if files and label not in {file.label(entity) for file in files}:
            there = sorted({f"{key}-{value}" for file in files for key, value in file.entities.items()})
            asked = f"has {entity}-{label}" if label else f"is without {entity}"
            raise ConfigError(f"study.where: no {name} file {asked}; their names have: {', '.join(there) or 'nothing'}")
        found = {scan: [file for file in found[scan] if file.label(entity) == label] for scan in found}
    return found


def choose(
    candidates: list[Candidate], name: str, runs: Literal["refuse", "first", "last"], others: list[str]
) -> Path | None:
    """The one file of a scan, or None if the scan has none of this modality.

    Raises:
        PairingError: there is more than one, or the file names no tracer while the dataset also has `others`.
    """
    differ = [entity for entity in _entities(candidates) if len({file.label(entity) for file in candidates}) > 1]
    if differ == ["run"] and runs != "refuse":
        in_order = sorted(candidates, key=lambda file: natural_order(file.label("run")))
        candidates = [in_order[0 if runs == "first" else -1]]
    names = ", ".join(file.path.name for file in candidates)
    if len(candidates) > 1:
        raise PairingError(f"{len(candidates)} files fit {name}: {names}; {_remedy(candidates, name, differ)}")
    if not candidates:
        return None
    if others and not candidates[0].label("trc"):
        raise PairingError(
            f"{names} names no tracer in a dataset that also has {', '.join(others)}; "
            f"add trc-{modality(name).tracer} to the name or take the file out"
        )
    return candidates[0].path


def find_mask(study: StudyConfig, scan: Scan, source: Path) -> Path | None:
    """The study's own brain mask of a scan's source image, or None where it has none.

    Raises:
        DataError: the folder of the masks is not there.
    """
    if study.masks is None:
        return None
    if not study.masks.is_dir():
        raise DataError(f"{study.masks}: no such folder; set study.masks to the root of the masks' BIDS dataset")
    names = study_mask_paths(study.masks, scan, source, modality(study.source))
    return next((path for path in names if path.is_file()), None)


def require_inside(root: Path, path: Path) -> None:
    """Refuse a file of a study, `path` below `root`, that is not there or leads out of the study's folder.

    Raises:
        DataError: with the reason.
    """
    if any("\udc80" <= char <= "\udcff" for char in path.as_posix()):  # how Python keeps bytes that are no text
        raise DataError(f"{path} is not UTF-8, and no table could name it; rename the file")
    try:
        real = (root / path).resolve()
        inside, there, is_file = real.is_relative_to(root.resolve()), real.exists(), real.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a circle of links, a character no name has
        reason = getattr(error, "strerror", None) or "a circle of links, or a character that no name has"
        raise DataError(f"{path} cannot be looked up ({reason}); mend the name or the link") from error
    if not inside:
        raise DataError(f"{path} leads out of the dataset; put the file itself there, not a link or path to elsewhere")
    if not there:
        raise DataError(f"{path} is not there or a link to a file that is not; fetch it (such as with datalad get)")
    if not is_file:
        raise DataError(f"{path} is a folder, pipe or the like, expected a regular file; put the scan itself there")


def natural_order(label: str) -> list[str | int]:
    """Sort key that puts `2` before `10` and `M6` before `M12`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", label)]


def _entities(candidates: list[Candidate]) -> list[str]:
    return sorted({entity for file in candidates for entity in file.entities})


def _remedy(candidates: list[Candidate], name: str, differ: list[str]) -> str:
    if not differ:
        return "keep one in the dataset"
    example = next(file.label(differ[0]) for file in candidates if file.label(differ[0]))
    by_name = f"study.where, such as {{{name}: {{{differ[0]}: '{example}'}}}}"
    return f"choose with study.runs or {by_name}" if differ == ["run"] else f"choose with {by_name}"


def _require_dataset(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set study.bids to the root of a BIDS dataset")
    if not any(root.glob("sub-*")):
        raise DataError(f"{root}: holds no sub-* folder; set study.bids to the root of a BIDS dataset")


def _require_same_scan(path: Path, scan: Scan, entities: Mapping[str, str]) -> None:
    if (entities.get("sub"), entities.get("ses")) != (scan.subject, scan.session):
        raise PairingError(f"{path.name} lies in the folder of {scan.key}; make name and folder agree")


def _may_be(file: Candidate, row: Modality) -> bool:
    """Whether a file names the row's tracer or none; datasets write `FDG` and, with the isotope, `18FFDG`."""
    tracer = re.compile(rf"(\d+[A-Z][a-z]?)?{row.tracer}", re.IGNORECASE)
    return not file.label("trc") or (row.tracer is not None and tracer.fullmatch(file.label("trc")) is not None)
