"""The summary of a study's index, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.bids_files import natural_order
from dualflow.data.duplicates import entry_name
from dualflow.data.index import Index, side_columns
from dualflow.data.markdown import markdown_table
from dualflow.data.split import SPLITS
from dualflow.data.tsv import shortlist
from dualflow.errors import printable

PLACES = [*SPLITS, "convert"]
_MOST = 40
"""Lines that a list of the page may have; the tables beside it have them all."""


def study_summary(index: Index, study: StudyConfig, split: SplitConfig) -> str:
    """What a study has, what it lacks, what was set aside and why, and who is used for what, as Markdown."""
    sections = {
        f"{study.name}: {' + '.join(study.sources)} to {study.target}": _scans(index, study),
        "Splits": f"{_how(index, split)}\n\n{_splits(index)}",
        "Missing": _missing(index, study),
        "Duplicates": _bullets([" = ".join(entry_name(*entry) for entry in group) for group in index.duplicates]),
        "Set aside": _bullets([f"{row.scan}: {row.reason}" for row in index.quarantined], "quarantine.tsv"),
    }
    page = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items()).removeprefix("#")
    # Labels of tables may hold terminal codes, and the page is printed.
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
    aside = {row.scan.split("_ses-")[0] for row in index.quarantined}
    return markdown_table(
        [("", "scans", "people"), *counts, ("set aside", str(len(index.quarantined)), str(len(aside)))]
    )


def _how(index: Index, split: SplitConfig) -> str:
    """One line on where the splits come from."""
    strata = " and ".join(_strata(index))
    drawn = f"Drawn with seed {split.seed}" + (f", each split with its share of every {strata}" if strata else "")
    said = f"As {split.file.name} says" if split.file else drawn
    fold = f"; fold {split.fold} of {index.splits['fold'].nunique()} is the test set" if split.folds else ""
    return f"{said}{fold}. splits.tsv has everyone's place; give it as split.file to keep it."


def _splits(index: Index) -> str:
    """Scans and people of each split, then its people by stratum, who all have a pair."""
    people = index.pairs.groupby("split")["subject"].nunique()
    rows = [("scans", *_counts(index.pairs["split"].value_counts())), ("people", *_counts(people))]
    for name in _strata(index):
        levels = index.splits[name].fillna("unknown")
        for level in sorted(levels.unique(), key=natural_order):
            counts = _counts(index.splits["split"][levels == level].value_counts())
            rows.append((f"people, {name} {level}", *counts[: len(SPLITS)], ""))
    return markdown_table([("", *PLACES), *rows])


def _strata(index: Index) -> list[str]:
    return [str(name) for name in index.splits.columns.drop(["subject", "fold", "split"])]


def _missing(index: Index, study: StudyConfig) -> str:
    pairs = index.pairs
    lacking = {**index.missing, f"scans without {study.target}": list(pairs["scan"][pairs["target"] == ""])}
    for name in side_columns(pairs):
        lacking[f"scans with {name} unknown"] = list(pairs["scan"][pairs[name].isna()])
    return _bullets([f"{what}: {len(who)} ({shortlist(who)})" for what, who in lacking.items() if who])


def _counts(column: pd.Series) -> list[str]:
    return [str(column.get(place, 0)) for place in PLACES]


def _bullets(lines: Sequence[str], table: str = "") -> str:
    """The lines as a list; of a long one the first, and where the others are."""
    more = [f"and {len(lines) - _MOST} more" + (f", in {table}" if table else "")] if len(lines) > _MOST else []
    return "\n".join(f"- {line}" for line in [*lines[:_MOST], *more]) or "None."
