"""The summary of a study's index, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.bids_files import natural_order
from dualflow.data.duplicates import entry_name
from dualflow.data.index import Index, side_columns, split_people
from dualflow.data.markdown import markdown_table
from dualflow.data.split import SPLITS
from dualflow.data.tsv import summarise_names
from dualflow.errors import printable

COLUMNS = [*SPLITS, "convert"]
MAX_LINES = 40
"""Longest list of the page; the tables beside it are complete."""


def study_summary(index: Index, study: StudyConfig, split: SplitConfig) -> str:
    """A study's scans, splits, missing data, duplicates and excluded scans, as Markdown."""
    sections = {
        f"{study.name}: {' + '.join(study.sources)} to {study.target}": _scans(index, study),
        "Splits": f"{_origin(index, split)}\n\n{_splits(index)}",
        "Missing": _missing(index, study),
        "Side columns": _bullets(list(index.guesses.values())),
        "Duplicates": _bullets([" = ".join(entry_name(*entry) for entry in group) for group in index.duplicates]),
        "Targets not used": _bullets([f"{scan}: {reason}" for scan, reason in sorted(index.unused_targets.items())]),
        "Excluded": _bullets([f"{row.scan}: {row.reason}" for row in index.quarantined], "quarantine.tsv"),
    }
    page = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items()).removeprefix("#")
    # The page is printed, and labels of tables may hold terminal escape sequences.
    return "\n".join(printable(line) for line in page.split("\n"))


def _scans(index: Index, study: StudyConfig) -> str:
    pairs = index.pairs
    paired = pairs["target"] != ""
    rows = {
        "usable": pairs,
        f"pairs, with {study.target}": pairs[paired],
        f"to convert, without {study.target}": pairs[~paired],
    }
    counts = [(name, str(len(rows[name])), str(rows[name]["subject"].nunique())) for name in rows]
    subjects = {row.scan.split("_ses-")[0] for row in index.quarantined}
    excluded = ("excluded", str(len(index.quarantined)), str(len(subjects)))
    return markdown_table([("", "scans", "subjects"), *counts, excluded])


def _origin(index: Index, split: SplitConfig) -> str:
    """One line on where the splits come from."""
    strata = " and ".join(_strata(index))
    drawn = f"Drawn with seed {split.seed}" + (f", stratified by {strata}" if strata else "")
    origin = f"Read from {split.file.name}" if split.file else drawn
    fold = f"; fold {split.fold} of {index.splits['fold'].nunique()} is the test set" if split.folds else ""
    return f"{origin}{fold}. splits.tsv lists the split of each subject; name it as split.file to keep the splits."


def _splits(index: Index) -> str:
    """Scans and subjects of each split, then its subjects by stratum."""
    subjects = [str(len(split_people(index.pairs, name))) for name in COLUMNS]
    rows = [("scans", *_counts(index.pairs["split"].value_counts())), ("subjects", *subjects)]
    for name in _strata(index):
        levels = index.splits[name].fillna("unknown")
        for level in sorted(levels.unique(), key=natural_order):
            counts = _counts(index.splits["split"][levels == level].value_counts())
            rows.append((f"subjects, {name} {level}", *counts[: len(SPLITS)], ""))
    note = "A subject counts under convert only if none of its scans has a target."
    return f"{markdown_table([('', *COLUMNS), *rows])}\n\n{note}"


def _strata(index: Index) -> list[str]:
    return [str(name) for name in index.splits.columns.drop(["subject", "fold", "split"])]


def _missing(index: Index, study: StudyConfig) -> str:
    pairs = index.pairs
    missing = {**index.missing, f"scans without {study.target}": list(pairs["scan"][pairs["target"] == ""])}
    for name in side_columns(pairs):
        missing[f"scans with {name} unknown"] = list(pairs["scan"][pairs[name].isna()])
    return _bullets([f"{kind}: {len(names)} ({summarise_names(names)})" for kind, names in missing.items() if names])


def _counts(column: pd.Series) -> list[str]:
    return [str(column.get(name, 0)) for name in COLUMNS]


def _bullets(lines: Sequence[str], table: str = "") -> str:
    """The lines as a list, cut to `MAX_LINES`; `table` names the file with all of them."""
    more = [f"and {len(lines) - MAX_LINES} more" + (f", in {table}" if table else "")] if len(lines) > MAX_LINES else []
    return "\n".join(f"- {line}" for line in [*lines[:MAX_LINES], *more]) or "None."
