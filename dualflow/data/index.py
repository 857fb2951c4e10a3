"""The index of a study: which scans form pairs, which are only to be converted, which are set aside, and the splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dualflow.commit import commit_text
from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.files import choose, find_candidates, other_tracers
from dualflow.data.participants import side_values
from dualflow.data.quarantine import Quarantine, write_quarantine
from dualflow.data.split import assign_splits
from dualflow.data.tables import all_numbers, numbers, read_table, table_text
from dualflow.errors import DataError, PairingError
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality

STEP = "pairing"
COLUMNS = ["scan", "subject", "session", "source", "target", "split"]
SPLITS = ("train", "validation", "test", "convert")


@dataclass(frozen=True)
class Index:
    """A study's scans.

    Attributes:
        pairs: one row per usable scan, sorted by `scan`: the columns `COLUMNS` (session None where there is none, paths
            relative to the dataset, target '' where there is none, split one of `SPLITS`), then the side columns.
        quarantined: the scans set aside, sorted.
    """

    pairs: pd.DataFrame
    quarantined: list[Quarantine]

    def summary(self) -> str:
        """What was found, in a few readable lines."""
        by_split = self.pairs.groupby("split")
        counts = {name: (len(rows), rows["subject"].nunique()) for name, rows in by_split}
        lines = [f"usable scans: {len(self.pairs)}, with target: {int((self.pairs['target'] != '').sum())}"]
        for split in SPLITS:
            scans, people = counts.get(split, (0, 0))
            lines.append(f"  {split:<12} scans: {scans:<5} people: {people}")
        for name in self.pairs.columns.drop(COLUMNS):
            unknown = int(self.pairs[name].isna().sum())
            lines.append(f"  {name:<12} known: {len(self.pairs) - unknown:<5} unknown: {unknown}")
        lines.append(f"set aside: {len(self.quarantined)}")
        lines += [f"  {row.scan}: {row.reason}" for row in self.quarantined]
        return "\n".join(lines)

    def write(self, layout: Layout) -> None:
        """Write `layout.index_quarantine`, then `layout.pairs`; each atomically, missing cells as `n/a`."""
        write_quarantine(layout.index_quarantine, self.quarantined)
        commit_text(
            layout.pairs, table_text(self.pairs.assign(target=self.pairs["target"].mask(self.pairs["target"] == "")))
        )


def build_index(bids: Path, study: StudyConfig, split: SplitConfig) -> Index:
    """Pair the scans of a BIDS dataset and draw the splits.

    Raises:
        DataError: the dataset or its participants.tsv cannot be used, or there is no one to train on.
        ConfigError: `split` names people who do not exist or leaves nothing to train on.
    """
    index = pair_scans(bids, study)
    paired = index.pairs["target"] != ""
    strata = _strata(index.pairs[paired], study.side)
    known = [*index.pairs["subject"], *(row.scan.removeprefix("sub-").split("_")[0] for row in index.quarantined)]
    splits = assign_splits(strata, split, known)
    column = index.pairs["subject"].map(splits).where(paired, "convert")
    return replace(index, pairs=index.pairs.assign(split=column))


def pair_scans(bids: Path, study: StudyConfig) -> Index:
    """Pair the scans of a BIDS dataset by subject and session; no splits are drawn, every row is `convert`.

    A scan is set aside when its target has no source, when several files could be one of the two, when a file is a
    link that leaves the dataset, and when its side information cannot be read.

    Raises:
        DataError: the dataset has no usable source at all, or a side column is in no table.
    """
    _require_dataset(bids)
    rows = {"source": modality(study.source), "target": modality(study.target)}
    found, refused = {}, {}
    for role, row in rows.items():
        found[role], unreadable = find_candidates(bids, row)
        refused.update(unreadable)
    others = {role: other_tracers(found[role], row) for role, row in rows.items()}

    files: dict[Scan, tuple[Path, Path | None]] = {}
    for scan in sorted({*found["source"], *found["target"]}, key=lambda scan: scan.key):
        try:
            source, target = (choose(bids, found[role].get(scan, []), row, others[role]) for role, row in rows.items())
            if source is None and target is not None:
                raise PairingError(
                    f"has {study.target} but no {study.source} in the same session; "
                    f"add {scan.folder / rows['source'].datatype}/{scan.key}_{rows['source'].suffix}.nii.gz"
                )
        except DataError as error:
            refused[scan.key] = error
            continue
        if source is not None and scan.key not in refused:
            files[scan] = (source, target)

    side, unusable = side_values(bids, list(files), study.side)
    refused.update(unusable)
    pairs = pd.DataFrame(
        [
            (scan.key, scan.subject, scan.session, source.as_posix(), target.as_posix() if target else "", "convert")
            for scan, (source, target) in files.items()
        ],
        columns=COLUMNS,
        dtype=object,
    )
    pairs = pairs.join(side)
    pairs = pairs[~pairs["scan"].isin(list(refused))].reset_index(drop=True)
    quarantined = sorted(Quarantine(key, STEP, str(error)) for key, error in refused.items())
    if pairs.empty:
        first = f" (the first of {len(quarantined)} set aside: {quarantined[0].reason})" if quarantined else ""
        raise DataError(f"{bids}: no usable {study.source} scan{first}; check the dataset and study.source")
    return Index(pairs, quarantined)


def read_pairs(layout: Layout) -> pd.DataFrame:
    """Read the table that `Index.write` wrote, as `Index.pairs` was.

    Raises:
        DataError: the table is missing or was not written by the index.
    """
    table = read_table(layout.pairs)
    if list(table.columns[: len(COLUMNS)]) != COLUMNS:
        raise DataError(f"{layout.pairs}: expected the columns {', '.join(COLUMNS)} first; build the index again")
    table["target"] = [target or "" for target in table["target"]]
    side = {name: numbers(table[name]) for name in table.columns.drop(COLUMNS) if all_numbers(table[name])}
    return table.assign(**side)


def _require_dataset(bids: Path) -> None:
    if not bids.is_dir():
        raise DataError(f"{bids}: no such folder; set study.bids to the root of a BIDS dataset")
    if not any(bids.glob("sub-*")):
        raise DataError(f"{bids}: holds no sub-* folder; set study.bids to the root of a BIDS dataset")


def _strata(pairs: pd.DataFrame, side: Sequence[str]) -> dict[str, str]:
    """Subject label -> value of the first categorical side column at the person's first scan ('' if unknown)."""
    first = pairs.drop_duplicates("subject").set_index("subject")
    column = next((name for name in side if not all_numbers(first[name])), None)
    values = [""] * len(first) if column is None else ["" if pd.isna(value) else str(value) for value in first[column]]
    return dict(zip(first.index, values, strict=True))
