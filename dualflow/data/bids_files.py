"""The source and target files of each scan of a BIDS dataset."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from bids2table import parse_bids_entities

from dualflow.config import StudyConfig
from dualflow.data.tracers import is_known_tracer, is_tracer, stated_tracer
from dualflow.errors import ConfigError, DataError, PairingError, printable
from dualflow.layout import Scan, study_mask_paths
from dualflow.modalities import Modality, modality

EXTENSIONS = (".nii", ".nii.gz")
FIXED_ENTITIES = ("sub", "ses", "datatype", "suffix", "ext")
"""Entities that cannot select among the files of one modality."""

Files = dict[Scan, dict[str, Path]]
"""Scan -> modality name -> file, relative to the root of the study."""
Exclusions = dict[str, DataError]
"""Key of a scan -> why it is excluded."""
Candidates = Mapping[Scan, list["Candidate"]]


@dataclass(frozen=True)
class Candidate:
    """A file that may be a scan's image of one modality.

    Attributes:
        path: path relative to the dataset's root.
        entities: entities of its name other than subject, session and suffix, such as `acq` or `run`.
        tracer: of a PET, the `trc` label of its name, otherwise that of its sidecar; '' if neither states one.
    """

    path: Path
    entities: Mapping[str, str]
    tracer: str = ""

    def label(self, entity: str) -> str:
        """Label of an entity; '' if the name lacks it."""
        return self.entities.get(entity, "")


@dataclass(frozen=True)
class BidsFiles:
    """The files of the scans of a BIDS dataset.

    Attributes:
        files: scan -> modality -> file.
        excluded: the scans with a file that cannot be used, and those whose files of a source cannot be told apart.
        unfit: the scans of which no file of a source fits `study.where`.
        unused_targets: the scans with a source of whose files of the target none fits, several do, or all have a tracer
            that no modality has.
    """

    files: Files
    excluded: Exclusions
    unfit: Mapping[Scan, DataError]
    unused_targets: Exclusions


def find_scans(root: Path, study: StudyConfig, modalities: Sequence[str]) -> BidsFiles:
    """Find the files of some of a study's modalities in a BIDS dataset.

    A file with another tracer, by its name or else its sidecar, does not belong to the modality. A file without a
    tracer counts only if the dataset has a single tracer. If `study.where` selects by tracer, any label does, and only
    files with it count.

    Raises:
        DataError: there is no dataset at `root`.
        ConfigError: no file matches `study.where`.
    """
    _require_dataset(root)
    files: Files = defaultdict(dict)
    excluded: Exclusions = {}
    unfit: dict[Scan, DataError] = {}
    unused_targets: Exclusions = {}
    for name in modalities:
        row, where = modality(name), study.where.get(name, {})
        candidates, unreadable = find_candidates(root, row)
        by_label, is_target = "trc" in where, name == study.target
        tracers = [] if by_label else other_tracers(candidates, row)
        matches = {
            scan: [file for file in scan_files if by_label or _has_tracer(file, row)]
            for scan, scan_files in candidates.items()
        }
        excluded.update(unreadable)
        if is_target:
            unused_targets |= _with_unknown_tracers(candidates, matches, files, row)
        for scan, selected in select(matches, name, where).items():
            if not selected and (others := _with_tracer(matches[scan], where)):
                if not is_target:
                    unfit[scan] = _misfit(others, name, where)
                elif files.get(scan):
                    unused_targets[scan.key] = _misfit(others, name, where)
                continue
            try:
                path = choose(selected, name, study.runs, tracers)
                if path is not None:
                    require_inside(root, path)
                    files[scan][name] = path
            except PairingError as error:
                (unused_targets if is_target and files.get(scan) else excluded)[scan.key] = error
            except DataError as error:
                excluded[scan.key] = error
    return BidsFiles(files, excluded, unfit, unused_targets)


def find_candidates(root: Path, row: Modality) -> tuple[Candidates, Exclusions]:
    """All files of a modality with any tracer, and the folders that are not scans with the reason.

    Only `sub-*/[ses-*/]DATATYPE/` is searched, not derivatives or source data. bids2table parses the names; its
    `index_dataset` is not used because it finds nothing in a folder whose name has a dot or bracket, such as
    `ds000001-1.0.0`.
    """
    candidates: dict[Scan, list[Candidate]] = defaultdict(list)
    excluded: Exclusions = {}
    for pattern in (f"sub-*/{row.datatype}/sub-*", f"sub-*/ses-*/{row.datatype}/sub-*"):
        for file in sorted(root.glob(pattern)):
            if not file.name.lower().endswith(tuple(f"_{row.suffix}{ext}".lower() for ext in EXTENSIONS)):
                continue
            entities = parse_bids_entities(file)
            path = file.relative_to(root)
            key = "_".join(path.parts[:-2])
            try:
                _require_case(path, row, entities)
                scan = Scan.parse(key)
                _require_same_scan(path, scan, entities)
            except DataError as error:
                excluded[printable(key)] = error
                continue
            varying = {entity: str(entities[entity]) for entity in entities if entity not in FIXED_ENTITIES}
            tracer = varying.get("trc") or (stated_tracer(file) if row.tracer else "")
            candidates[scan].append(Candidate(path, varying, tracer))
    return candidates, excluded


def other_tracers(candidates: Candidates, row: Modality) -> list[str]:
    """The tracers of the dataset's files other than the modality's own, sorted."""
    labels = {file.tracer for files in candidates.values() for file in files if not _has_tracer(file, row)}
    return sorted(labels)


def select(candidates: Candidates, name: str, where: Mapping[str, str]) -> Candidates:
    """The candidates of modality `name` with the entities of `where`; '' selects names without the entity.

    Raises:
        ConfigError: the modality has files, but none matches.
    """
    for entity, label in where.items():
        files = [file for scan_files in candidates.values() for file in scan_files]
        if files and label not in {file.label(entity) for file in files}:
            available = sorted({f"{key}-{value}" for file in files for key, value in file.entities.items()})
            wanted = f"has {entity}-{label}" if label else f"is without {entity}"
            remedy = f"choose from: {', '.join(available)}" if available else "their names have no labels to choose by"
            raise ConfigError(f"study.where or --where: no {name} file {wanted}; {remedy}")
        candidates = {
            scan: [file for file in scan_files if file.label(entity) == label]
            for scan, scan_files in candidates.items()
        }
    return candidates


def _with_tracer(candidates: list[Candidate], where: Mapping[str, str]) -> list[Candidate]:
    """The candidates with the tracer that `where` names, if it does."""
    return [file for file in candidates if file.label("trc") == where.get("trc", file.label("trc"))]


def choose(
    candidates: list[Candidate], name: str, runs: Literal["refuse", "first", "last"], tracers: list[str]
) -> Path | None:
    """The file of a scan, or None if the scan has none of this modality.

    Raises:
        PairingError: several files match, or the file names no tracer in a dataset with other `tracers`.
    """
    differing = [entity for entity in _entities(candidates) if len({file.label(entity) for file in candidates}) > 1]
    if differing == ["run"] and runs != "refuse":
        in_order = sorted(candidates, key=lambda file: natural_order(file.label("run")))
        candidates = [in_order[0 if runs == "first" else -1]]
    names = ", ".join(file.path.name for file in candidates)
    if len(candidates) > 1:
        raise PairingError(f"{len(candidates)} files fit {name}: {names}; {_remedy(candidates, name, differing)}")
    if not candidates:
        return None
    if tracers and not candidates[0].tracer:
        raise PairingError(
            f"{names} names no tracer in a dataset that also has {', '.join(tracers)}; "
            f"add trc-{modality(name).tracer} to the name or TracerName to the sidecar, or remove the file"
        )
    return candidates[0].path


def find_mask(study: StudyConfig, scan: Scan, source: Path) -> Path | None:
    """The study's brain mask of a scan's source image, or None if the study has none.

    Raises:
        DataError: the folder of the masks does not exist.
    """
    if study.masks is None:
        return None
    if not study.masks.is_dir():
        raise DataError(
            f"{study.masks}: no such folder, expected a BIDS dataset of brain masks; check study.masks or --masks"
        )
    names = study_mask_paths(study.masks, scan, source, modality(study.source))
    # Unlike Path.is_file, isfile is false for a name that is too long.
    return next((path for path in names if os.path.isfile(path)), None)  # noqa: PTH113


def scans_without_mask(study: StudyConfig, root: Path, pairs: pd.DataFrame) -> list[str]:
    """Keys of the scans without a brain mask in the study's folder of masks; none if the study has no such folder.

    Args:
        study: its masks and source modality.
        root: folder that the paths in `pairs` are relative to.
        pairs: rows of the index.

    Raises:
        DataError: the folder does not exist, or has no mask of any scan.
    """
    sources = dict(zip(pairs["scan"], pairs["source"], strict=True))
    if study.masks is None or not sources:
        return []
    lacking = [key for key, path in sources.items() if find_mask(study, Scan.parse(key), root / path) is None]
    if len(lacking) == len(sources):
        key, path = next(iter(sources.items()))
        names = study_mask_paths(study.masks, Scan.parse(key), root / path, modality(study.source))
        raise DataError(
            f"{study.masks} has no mask of any of {len(sources)} scans, expected names such as "
            f"{names[0].relative_to(study.masks)}; check study.masks or --masks"
        )
    return lacking


def is_utf8(path: Path) -> bool:
    """Whether a path can be written to a table: Python stands for undecodable bytes by surrogates."""
    return not any("\udc80" <= char <= "\udcff" for char in path.as_posix())


def require_inside(root: Path, path: Path) -> None:
    """Check that the file `path`, relative to `root`, is a regular file in the study's folder or in its annex.

    Raises:
        DataError: it is not; the message gives the reason.
    """
    if not is_utf8(path):
        raise DataError(f"{path} is not UTF-8, expected a name that a table can hold; rename the file")
    try:
        real = (root / path).resolve()
        inside = real.is_relative_to(root.resolve()) or _is_annexed(root, path, real)
        exists, is_file = real.exists(), real.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a link to itself, a null character
        reason = getattr(error, "strerror", None) or "a link to itself, or an invalid character"
        raise DataError(f"{path} cannot be looked up ({reason}); correct the name or the link") from error
    if not inside:
        raise DataError(f"{path} leads out of the dataset; copy the file into the dataset")
    if not exists:
        raise DataError(f"{path} is not there, or is a broken link; fetch the file, for example with datalad get")
    if not is_file:
        raise DataError(f"{path} is a folder, pipe or device, expected a regular file; put the scan there")


def _is_annexed(root: Path, path: Path, real: Path) -> bool:
    """Whether `path` in `root` links to the git-annex store of the dataset that contains `root`, such as its `rawdata`.

    Args:
        root: the study's folder.
        path: the file, relative to `root`.
        real: the file after all links.
    """
    top = root.resolve()
    base, named = (Path(os.path.abspath(file)) for file in (root, root / path))  # noqa: PTH100 - follows no links
    dataset = next((folder for folder in (top, *top.parents) if (folder / ".git").exists()), top)
    in_root = named.is_relative_to(base) or named.is_relative_to(top)
    return in_root and real.is_relative_to((dataset / ".git").resolve() / "annex" / "objects")


def natural_order(label: str) -> list[str | int]:
    """Sort key by which `2` precedes `10` and `M6` precedes `M12`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", label)]


def _entities(candidates: list[Candidate]) -> list[str]:
    return sorted({entity for file in candidates for entity in file.entities})


def _remedy(candidates: list[Candidate], name: str, differing: list[str]) -> str:
    if not differing:
        return "keep one in the dataset"
    example = next(file.label(differing[0]) for file in candidates if file.label(differing[0]))
    entity = differing[0]
    keys, options = ("study.runs or ", "--runs or ") if differing == ["run"] else ("", "")
    by_key = f"{keys}study.where, such as {{{name}: {{{entity}: '{example}'}}}}"
    return f"choose with {by_key}, or with {options}--where {name}.{entity}={example}"


def _misfit(candidates: list[Candidate], name: str, where: Mapping[str, str]) -> DataError:
    wanted = ", ".join(f"{entity}: {label or 'none'}" for entity, label in where.items())
    names = ", ".join(file.path.name for file in candidates)
    return PairingError(
        f"no {name} file fits study.where or --where ({wanted}): {names}; change it, or list the images in a table, "
        "study.samples"
    )


def _require_dataset(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder, expected the root of a BIDS dataset; check the path")
    if not any(root.glob("sub-*")):
        raise DataError(f"{root}: holds no sub-* folder, expected the root of a BIDS dataset; check the path")


def _require_same_scan(path: Path, scan: Scan, entities: Mapping[str, str]) -> None:
    if (entities.get("sub"), entities.get("ses")) != (scan.subject, scan.session):
        raise PairingError(f"{path.name} lies in the folder of {scan.key}; make name and folder agree")


def _require_case(path: Path, row: Modality, entities: Mapping[str, str]) -> None:
    if entities.get("suffix") != row.suffix or entities.get("ext") not in EXTENSIONS:
        raise PairingError(
            f"{path.name}: names end in _{row.suffix}.nii or _{row.suffix}.nii.gz, in this case; rename it"
        )


def _has_tracer(file: Candidate, row: Modality) -> bool:
    """Whether a file has the row's tracer, or states none."""
    return not file.tracer or is_tracer(file.tracer, row)


def _with_unknown_tracers(candidates: Candidates, matches: Candidates, files: Files, row: Modality) -> Exclusions:
    """The scans with a source, but no file of the row's tracer and one whose tracer may be a misspelling of it."""
    reasons: Exclusions = {}
    for scan, scan_files in candidates.items():
        odd = [file for file in scan_files if not is_known_tracer(file.tracer)]
        if odd and not matches[scan] and files.get(scan):
            reasons[scan.key] = PairingError(
                f"{odd[0].path.name} has the tracer '{odd[0].tracer}', which is that of no modality; if it is "
                f"{row.tracer}, write trc-{row.tracer} in its name"
            )
    return reasons
