"""Which scans of the inputs to convert: by subject, session, entities and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dualflow.data.bids_files import natural_order
from dualflow.data.index import Index
from dualflow.data.tsv import summarise_names
from dualflow.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """What to convert of the inputs.

    Attributes:
        participants: subject labels, with or without `sub-`; empty for all.
        sessions: session labels, with or without `ses-`; empty for all.
        side: side information of images without a table, by column.
        where: entities by modality, as `StudyConfig.where`.
        runs: which of several runs to take, as `StudyConfig.runs`.
        masks: BIDS derivative dataset of brain masks, or None.
        option_names: options of the command, which a misspelt side column may mean.
    """

    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    side: Mapping[str, object] = field(default_factory=dict)
    where: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    runs: Literal["refuse", "first", "last"] = "refuse"
    masks: Path | None = None
    option_names: Sequence[str] = ()

    def select(self, index: Index, path: Path) -> Index:
        """The index of the selected subjects and sessions.

        Args:
            index: of all scans.
            path: the dataset or table, for errors.

        Raises:
            ConfigError: a label does not exist, or a participant has no scan of the sessions.
        """
        keys = [*index.pairs["scan"], *(row.scan for row in index.quarantined)]
        labels = {key: _labels(key) for key in keys}
        people = _chosen(self.participants, "sub", [subject for subject, _ in labels.values()], path)
        sessions = _chosen(self.sessions, "ses", [session for _, session in labels.values() if session], path)
        selected = {
            key
            for key, (subject, session) in labels.items()
            if (not people or subject in people) and (not sessions or session in sessions)
        }
        with_scan = {labels[key][0] for key in selected}
        if without := [person for person in people if person not in with_scan]:
            raise ConfigError(
                f"{path}: no scan of the participants {', '.join(without)} is of {', '.join(sessions)}; leave them out"
            )
        missing = index.missing
        if people:
            missing = {kind: [label for label in names if label in people] for kind, names in missing.items()}
        pairs = index.pairs[index.pairs["scan"].isin(selected)].reset_index(drop=True)
        excluded = [row for row in index.quarantined if row.scan in selected]
        return replace(index, pairs=pairs, quarantined=excluded, missing=missing)


def _labels(key: str) -> tuple[str, str | None]:
    """Subject and session label of a key, which may be invalid."""
    subject, _, session = key.removeprefix("sub-").partition("_ses-")
    return subject, session or None


def _chosen(labels: Sequence[str], entity: str, known: Sequence[str], path: Path) -> list[str]:
    """The labels without the prefix of their entity.

    Raises:
        ConfigError: one is unknown.
    """
    chosen = [label.removeprefix(f"{entity}-") for label in labels]
    option = {"sub": "--participant-label", "ses": "--session-label"}[entity]
    if unknown := [label for label in chosen if label not in known]:
        existing = sorted(set(known), key=natural_order)
        raise ConfigError(
            f"{option} {', '.join(unknown)}: no such scan in {path}; choose from: "
            f"{summarise_names(existing, 40) or 'none'}"
        )
    return chosen
