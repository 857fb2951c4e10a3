"""Overview of a BIDS dataset: scans of each modality, sessions, and columns of participants.tsv."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from bids2table import parse_bids_entities

from dualflow.data.bids_files import EXTENSIONS, FIXED_ENTITIES
from dualflow.data.participants import known_columns
from dualflow.data.tracers import is_tracer
from dualflow.errors import ConfigError, DataError
from dualflow.modalities import MODALITIES, Modality

ScanKey = tuple[str, str | None]
"""Subject and session label."""


@dataclass(frozen=True)
class DatasetOverview:
    """The content of a BIDS dataset.

    Attributes:
        scans: modality -> subject and session of the scans that have it.
        entities: modality -> entity -> scans that have each label, for entities that differ within a scan; '' stands
            for names without the entity.
        unnamed_pet: number of PET files whose names give no tracer of MODALITIES.
        columns: columns of participants.tsv and the sessions tables.
    """

    scans: dict[str, set[ScanKey]]
    entities: dict[str, dict[str, Counter[str]]]
    unnamed_pet: int
    columns: list[str]

    def pairs(self, first: str, second: str) -> int:
        """Number of scans with both modalities, or of subjects if no scan has both."""
        if self.in_one_session(first, second):
            return len(self.scans[first] & self.scans[second])
        return len(_subjects(self.scans[first]) & _subjects(self.scans[second]))

    def in_one_session(self, first: str, second: str) -> bool:
        """Whether a scan has both modalities."""
        return bool(self.scans[first] & self.scans[second])

    def choose_pair(self) -> tuple[str, str]:
        """Source and target: an MR modality, T1w first, and the PET tracer or other modality with most pairs.

        Raises:
            ConfigError: no subject has two modalities.
        """
        candidates = [
            (target, source) if _rank(source) > _rank(target) else (source, target)
            for source, target in combinations(self.scans, 2)
            if self.pairs(source, target)
        ]
        if not candidates:
            counts = ", ".join(f"{name} {len(scans)}" for name, scans in self.scans.items())
            raise ConfigError(
                f"no subject has two modalities ({counts}), expected a source such as T1w and a target such as FDG; "
                f"{self._tracer_hint or 'check the names of the files'}"
            )
        return max(
            candidates,
            key=lambda pair: (
                *(pair[0] == "T1w", is_pet(pair[1]), self.in_one_session(*pair), self.pairs(*pair)),
                *(-_rank(pair[0]), -_rank(pair[1])),
            ),
        )

    def summary(self) -> str:
        """A few lines for the terminal."""
        keys = set().union(*self.scans.values())
        subjects, sessions = _subjects(keys), {session for _, session in keys if session}
        lines = [f"{len(subjects)} subjects, {len(keys)} scans" + (f", {len(sessions)} sessions" if sessions else "")]
        lines += [f"  {name:<8}{len(scans)} scans" for name, scans in self.scans.items()]
        if self._tracer_hint:
            lines.append(f"  {self._tracer_hint}")
        lines.append(f"  columns: {', '.join(self.columns) or 'none'}")
        return "\n".join(lines)

    @property
    def _tracer_hint(self) -> str:
        """What to do about PET files without a known tracer, if there are any."""
        files = f"{self.unnamed_pet} PET files name no known tracer; add trc-LABEL to their names"
        return files if self.unnamed_pet else ""


def describe_dataset(root: Path) -> DatasetOverview:
    """Summarise the file names and tables of a BIDS dataset.

    Raises:
        DataError: `root` holds no subjects, or none of their scans has a known modality.
    """
    if not any(root.glob("sub-*")):
        raise DataError(f"{root}: has no sub-* folder; name the root folder of a BIDS dataset")
    files: dict[str, dict[ScanKey, list[dict[str, str]]]] = {name: defaultdict(list) for name in MODALITIES}
    unnamed_pet = 0
    for datatype in sorted({row.datatype for row in MODALITIES.values()}):
        for file in [*root.glob(f"sub-*/{datatype}/sub-*"), *root.glob(f"sub-*/ses-*/{datatype}/sub-*")]:
            entities = {key: str(value) for key, value in parse_bids_entities(file).items()}
            if entities.get("ext") not in EXTENSIONS:
                continue
            name = next((name for name, row in MODALITIES.items() if _fits(entities, row)), None)
            if name:
                files[name][entities["sub"], entities.get("ses")].append(entities)
            else:
                unnamed_pet += entities.get("suffix") == "pet"
    scans = {name: set(by_scan) for name, by_scan in files.items() if by_scan}
    if not scans:
        raise DataError(f"{root}: no scan has a known modality, expected one of: {', '.join(MODALITIES)}")
    differing = {name: _differing(list(files[name].values())) for name in scans}
    return DatasetOverview(scans, differing, unnamed_pet, known_columns(root))


def is_pet(name: str) -> bool:
    """Whether a modality is a PET tracer."""
    return MODALITIES[name].datatype == "pet"


def _subjects(scans: set[ScanKey]) -> set[str]:
    return {subject for subject, _ in scans}


def _rank(name: str) -> int:
    return list(MODALITIES).index(name)


def _fits(entities: dict[str, str], row: Modality) -> bool:
    """Whether a file name is of a modality; a file of a PET modality must name the tracer."""
    if entities.get("suffix") != row.suffix or entities.get("datatype") != row.datatype:
        return False
    return row.tracer is None or is_tracer(entities.get("trc", ""), row)


def _differing(scans: list[list[dict[str, str]]]) -> dict[str, Counter[str]]:
    """The entities that distinguish several files of one scan, with the number of scans that have each label."""
    names = {
        entity
        for files in scans
        for file in files
        for entity in file
        if entity not in (*FIXED_ENTITIES, "trc") and len({entry.get(entity, "") for entry in files}) > 1
    }
    return {
        name: Counter(sorted(label for files in scans for label in {file.get(name, "") for file in files}))
        for name in sorted(names)
    }
