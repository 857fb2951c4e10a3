"""The index of a study: its pairs, the scans to convert, the excluded scans, and the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd

from dualflow.commit import commit_text
from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.bids_files import (
    Exclusions,
    Files,
    find_candidates,
    find_scans,
    other_tracers,
    scans_without_mask,
)
from dualflow.data.duplicates import Entry, exclude_duplicates, find_duplicates
from dualflow.data.exclusions import EXCLUDE, EXCLUDE_TARGET, review_reasons
from dualflow.data.exclusions import STEP as REVIEW
from dualflow.data.output_names import scans_with_long_names
from dualflow.data.participants import UNDECLARED, Declaration, guessed_types, listed_subjects, side_values
from dualflow.data.quarantine import Quarantine, without_folders, write_quarantine
from dualflow.data.scan_table import find_samples, sample_values, table_subjects
from dualflow.data.session_pairs import join_sessions, session_partners
from dualflow.data.split import assign_folds, assign_splits
from dualflow.data.strata import first_categorical, first_scans, strata_of, strata_table
from dualflow.data.tracers import is_known_tracer
from dualflow.data.tsv import all_numbers, numbers, read_table, table_text
from dualflow.errors import ConfigError, DataError, PairingError
from dualflow.layout import Layout, Scan
from dualflow.modalities import MODALITIES, modality

STEP = "pairing"
COLUMNS = ["scan", "subject", "session", "source", "target", "split"]
EXTRA = [f"source_{name}" for name in MODALITIES]
"""Columns of further sources, between `COLUMNS` and the side columns."""


@dataclass(frozen=True)
class Index:
    """A study's scans.

    Attributes:
        pairs: one row per usable scan, sorted by `scan`: the columns `COLUMNS` (session None if there is none, paths
            relative to the dataset, target '' if there is none, split one of `SPLITS` or `convert`), the study's
            columns of `EXTRA`, then the side columns.
        quarantined: the excluded scans, sorted.
        missing: kind of missing data -> labels of the subjects or scans without it.
        duplicates: groups of files with the same voxels.
        splits: one row per subject with a pair: subject, fold (None without folds), split, then the strata.
        guesses: side column -> a line on its type, which no JSON sidecar declares.
        unused_targets: key of a scan -> why its target is not used; the scan is one to convert.
        lone_targets: keys of the scans that have the target and no source, which are neither used nor excluded.
    """

    pairs: pd.DataFrame
    quarantined: list[Quarantine]
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    duplicates: Sequence[Sequence[Entry]] = ()
    splits: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["subject", "fold", "split"]))
    guesses: Mapping[str, str] = field(default_factory=dict)
    unused_targets: Mapping[str, str] = field(default_factory=dict)
    lone_targets: Sequence[str] = ()

    def without(self, excluded: Mapping[str, object], *folders: Path, step: str = STEP) -> Index:
        """The index after excluding further scans in a step; paths in the reasons become relative to `folders`."""
        reasons = {key: without_folders(str(error), *folders) for key, error in excluded.items()}
        # A reviewer's decision on a scan that is excluded already replaces its reason.
        others = [row for row in self.quarantined if row.scan not in reasons]
        quarantined = sorted([*others, *(Quarantine(key, step, reasons[key]) for key in reasons)])
        pairs = self.pairs[~self.pairs["scan"].isin(list(excluded))].reset_index(drop=True)
        return replace(self, pairs=pairs, quarantined=quarantined)

    def without_targets(self, reasons: Mapping[str, str]) -> Index:
        """The index after setting aside the targets of some scans."""
        targets = self.pairs["target"].mask(self.pairs["scan"].isin(list(reasons)), "")
        unused = {**self.unused_targets, **{key: " ".join(reasons[key].split()) for key in reasons}}
        return replace(self, pairs=self.pairs.assign(target=targets), unused_targets=unused)

    def write(self, layout: Layout) -> None:
        """Write the tables `index_quarantine`, `splits` and `pairs`, each atomically."""
        write_quarantine(layout.index_quarantine, self.quarantined)
        commit_text(layout.splits, table_text(self.splits))
        targets = self.pairs["target"].mask(self.pairs["target"] == "")
        commit_text(layout.pairs, table_text(self.pairs.assign(target=targets)))


def build_index(
    bids: Path,
    study: StudyConfig,
    split: SplitConfig,
    digests: Path | None = None,
    quarantine: Path | None = None,
    out: Path | None = None,
) -> Index:
    """Pair the scans of a study, exclude duplicates and assign the splits.

    Args:
        bids: root of the dataset: a BIDS dataset, or the folder of the files in `study.samples`.
        study: modalities and side columns.
        split: how subjects are split.
        digests: table that caches voxel digests; without it, every scan is read.
        quarantine: table of the excluded scans to write if no scan is usable; otherwise `Index.write` writes it.
        out: folder of the results, as in `list_scans`.

    Raises:
        DataError: the dataset or one of its tables cannot be used, or there is no training subject.
        ConfigError: `study` or `split` names a column or subject that does not exist, or leaves no training set.
    """
    index = reviewed_scans(bids, study, split, out)
    _require_usable(index, bids, study, quarantine)
    groups = find_duplicates(bids, _files(index.pairs), digests)
    duplicates = [group for group in groups if not _shares_a_source(group, index.pairs)]
    paired = {Scan.parse(key) for key in index.pairs.loc[index.pairs["target"] != "", "scan"]}
    index = replace(index.without(exclude_duplicates(duplicates, paired), bids), duplicates=duplicates)
    _require_usable(index, bids, study, quarantine)

    has_target = index.pairs["target"] != ""
    if not has_target.any():
        if quarantine is not None:
            write_quarantine(quarantine, index.quarantined)
        why = next((f" ({scan}: {reason})" for scan, reason in index.unused_targets.items()), "")
        if lone := len(index.lone_targets):
            why += f" ({lone} sessions have it alone: list the pairs in a table, study.samples)"
        raise DataError(
            f"{bids}: none of {len(has_target)} scans with {study.source} has {study.target} too"
            f"{why}{_first_excluded(index)}, expected pairs to train on; check study.target and the names of its files"
            f"{_tracers(bids, study)}"
        )
    table = index.pairs[has_target]
    levels = strata_table(table, split.stratify or first_categorical(table, study.side))
    strata = strata_of(levels)
    others = [*(row.scan for row in index.quarantined), *index.lone_targets]
    labels = [*index.pairs["subject"], *map(subject_of, others)]
    folds = assign_folds(strata, split)
    splits = assign_splits(strata, split, folds, labels)
    rows = [(label, folds.get(label), splits[label]) for label in sorted(splits)]
    subjects = pd.DataFrame(rows, columns=["subject", "fold", "split"], dtype=object)
    column = index.pairs["subject"].map(splits).where(has_target, "convert")
    kept = (*study.side, *study.labels)
    named = {label.removeprefix("sub-") for label in (*split.test_subjects, *split.validation_subjects)}
    return replace(
        index,
        missing={**index.missing, "subjects that section split names, without a pair": sorted(named - splits.keys())},
        pairs=index.pairs.assign(split=column).drop(columns=[name for name in split.stratify if name not in kept]),
        splits=subjects.join(levels, on="subject"),
    )


def reviewed_scans(bids: Path, study: StudyConfig, split: SplitConfig, out: Path | None = None) -> Index:
    """List the scans of a study with all columns that its index reads, and apply the decisions of its reviewer.

    Args:
        bids: root of the dataset: a BIDS dataset, or the folder of the files in `study.samples`.
        study: modalities, side columns, labels and exclusions.
        split: columns to stratify by.
        out: folder of the results, as in `list_scans`.

    Raises:
        DataError: a table cannot be used, a column is in no table, a decision is on no scan of the study, or
            `study.masks` fits no scan.
        ConfigError: no file matches `study.where`.
    """
    columns = tuple(dict.fromkeys([*study.side, *study.labels, *split.stratify]))
    index = list_scans(bids, study.model_copy(update={"side": columns}), study.modalities, out)
    known = {*index.pairs["scan"], *(row.scan for row in index.quarantined), *index.lone_targets}
    reasons = review_reasons(study.exclusions, known)
    lone = set(index.lone_targets)
    unused = {scan: reason for scan, reason in reasons[EXCLUDE_TARGET].items() if scan not in lone}
    index = index.without(reasons[EXCLUDE], step=REVIEW).without_targets(unused)
    without_mask = scans_without_mask(study, bids, index.pairs)
    missing = {**index.missing, "scans without a mask in study.masks, masked by deepbet": without_mask}
    return replace(index, missing=missing, lone_targets=sorted(lone - reasons[EXCLUDE].keys()))


def pair_scans(bids: Path, study: StudyConfig, out: Path | None = None) -> Index:
    """Pair the scans of a study by subject and session, without splits: every row is `convert`.

    Args:
        bids: root of the dataset: a BIDS dataset, or the folder of the files in `study.samples`.
        study: modalities and side columns.
        out: folder of the results, as in `list_scans`.

    Raises:
        DataError: there is no usable scan, a table cannot be used, or a side column is in no table.
        ConfigError: no file matches `study.where`.
    """
    index = list_scans(bids, study, study.modalities, out)
    _require_usable(index, bids, study)
    return index


def list_scans(
    bids: Path,
    study: StudyConfig,
    modalities: Sequence[str],
    out: Path | None = None,
    known: Mapping[str, Declaration] = UNDECLARED,
) -> Index:
    """List the scans that have all sources of a study, without splits; the list may be empty.

    A scan is excluded if it lacks a source, if several files match a source or none fits `study.where`, if a file is
    missing or lies outside the dataset, if its labels are too long for names of outputs, or if its side information is
    invalid. If several files match the target or none fits `study.where`, the scan is one to convert. A session of
    a BIDS dataset with a usable target alone is no scan, but is excluded if `study.join_sessions` would pair it.

    Args:
        bids: root of the dataset: a BIDS dataset, or the folder of the files in `study.samples`.
        study: modalities and side columns.
        modalities: the modalities to look for: all of the study, or its sources to ignore the targets.
        out: folder of the results, whose file system limits the length of names; None takes that of `bids`.
        known: types of the side columns that a model knows, so that other rows do not decide what a cell means.

    Raises:
        DataError: a table cannot be used, or a side column is in no table.
        ConfigError: no file matches `study.where`.
    """
    if reserved := [name for name in study.side if name in [*COLUMNS, *EXTRA, "fold"]]:
        raise ConfigError(f"side column '{reserved[0]}' has the name of a column of the index; rename the column")
    table = study.samples
    unused_targets: Exclusions = {}
    partners: dict[Scan, Scan] = {}
    if table:
        files, excluded = find_samples(table, bids, study, modalities)
    else:
        listing = find_scans(bids, study, modalities)
        files, excluded, unused_targets = listing.files, listing.excluded, listing.unused_targets
        # Which of the visits of a subject with an unclear one belong together is unclear too.
        unclear = {subject_of(key) for key in excluded}
        partners = session_partners({scan: files[scan] for scan in files if scan.subject not in unclear}, study)
        joined = partners if study.join_sessions else {}
        files = join_sessions(files, joined)
        excluded = {scan.key: error for scan, error in listing.unfit.items() if scan not in joined} | excluded
    listed = table_subjects(table) if table else listed_subjects(bids)
    clear = {scan: files[scan] for scan in files if scan.key not in excluded}
    incomplete, missing, lone = _incomplete(clear, study, partners)
    alone = set(lone)
    files = {scan: files[scan] for scan in files if scan.key not in alone}
    excluded |= incomplete | scans_with_long_names(files, study, out or bids)
    scans = sorted((scan for scan in files if scan.key not in excluded and files[scan]), key=lambda scan: scan.key)
    with_scan = {scan.subject for scan in scans} | {subject_of(key) for key in (*excluded, *lone)}
    subject_table = table.name if table else "participants.tsv"
    scan_name = "a scan" if study.target in modalities else f"a {study.source} scan"
    missing[f"subjects in {subject_table} without {scan_name}"] = sorted(set(listed) - with_scan)
    if listed:
        missing[f"subjects with {scan_name} but not in {subject_table}"] = sorted(with_scan - set(listed))

    read = partial(sample_values, table) if table else partial(side_values, bids)
    side, invalid = read(scans, study.side, known)
    extra = {f"source_{name}": name for name in study.extra_sources}
    columns = {"source": study.source, "target": study.target, **extra}
    rows = [
        {"scan": scan.key, "subject": scan.subject, "session": scan.session, "split": "convert"}
        | {column: files[scan][name].as_posix() if name in files[scan] else "" for column, name in columns.items()}
        for scan in scans
    ]
    pairs = pd.DataFrame(rows, columns=[*COLUMNS, *extra], dtype=object)
    guesses = guessed_types(side, table.with_suffix(".json") if table else bids / "participants.json")
    index = Index(pairs.join(side), [], missing, guesses=guesses, lone_targets=lone)
    index = index.without(excluded | invalid, bids)
    return index.without_targets({key: str(error) for key, error in unused_targets.items() if key not in excluded})


def read_pairs(layout: Layout) -> pd.DataFrame:
    """Read the table of `Index.pairs` that `Index.write` wrote.

    Raises:
        DataError: the table is missing or was not written by the index.
    """
    if not layout.pairs.is_file():
        raise DataError(f"{layout.pairs}: the study has no index yet; make it with `dualflow run ... -- index`")
    table = read_table(layout.pairs, labels=("subject", "session"))
    if list(table.columns[: len(COLUMNS)]) != COLUMNS:
        raise DataError(f"{layout.pairs}: expected the columns {', '.join(COLUMNS)} first; build the index again")
    table["target"] = [target or "" for target in table["target"]]
    side = side_columns(table)
    return table.assign(**{name: numbers(table[name]) for name in side if all_numbers(table[name])})


def split_people(pairs: pd.DataFrame, split: str) -> pd.DataFrame:
    """First scan of each person of a split; people of `convert` have no scan with a target."""
    people = first_scans(pairs[pairs["split"] == split])
    paired = pairs.loc[pairs["split"] != "convert", "subject"]
    return people[~people["subject"].isin(paired)] if split == "convert" else people


def side_columns(pairs: pd.DataFrame) -> list[str]:
    """Names of the side columns of `Index.pairs`."""
    return [str(name) for name in pairs.columns if name not in [*COLUMNS, *EXTRA]]


def _incomplete(
    files: Files, study: StudyConfig, partners: Mapping[Scan, Scan]
) -> tuple[Exclusions, dict[str, list[str]], list[str]]:
    """The scans that lack a source with the reason, the scans by missing modality, and `Index.lone_targets`.

    Args:
        files: files of the scans.
        study: modalities.
        partners: scans with the target alone that `study.join_sessions` would pair.
    """
    excluded: Exclusions = {}
    missing: dict[str, list[str]] = {}
    lone: list[str] = []
    owners = {(scan.subject, name): scan for scan in reversed(files) for name in files[scan]}
    for scan in sorted(files, key=lambda scan: scan.key):
        absent = [name for name in study.sources if name not in files[scan]]
        if not files[scan] or not absent:
            continue
        images = f"{' and '.join(files[scan])} but no {' and '.join(absent)}"
        elsewhere = owners.get((scan.subject, absent[0]))
        # Sessions with the target alone are usual in longitudinal datasets. A row of a table is meant as a scan.
        if set(files[scan]) == {study.target} and scan not in partners and study.samples is None:
            lone.append(scan.key)
            images += ", which another session has" if elsewhere else ""
        else:
            remedy = (
                _other_session(absent[0], elsewhere, can_join=scan in partners)
                if elsewhere
                else _remedy(scan, absent[0], study.samples)
            )
            excluded[scan.key] = PairingError(f"has {images}; {remedy}")
        missing.setdefault(f"scans with {images}", []).append(scan.key)
    return excluded, missing, lone


def _require_usable(index: Index, root: Path, study: StudyConfig, quarantine: Path | None = None) -> None:
    if index.pairs.empty:
        if quarantine is not None:
            write_quarantine(quarantine, index.quarantined)
        first = _first_excluded(index)
        if lone := len(index.lone_targets):
            first += f" (sessions with {study.target} alone: {lone})"
        raise DataError(f"{root}: no usable {study.source} scan{first}; check the dataset and study.source")


def _first_excluded(index: Index) -> str:
    excluded = index.quarantined
    return f" (the first of {len(excluded)} excluded: {excluded[0].reason})" if excluded else ""


def _tracers(bids: Path, study: StudyConfig) -> str:
    """The other tracers than the target's in names of PET, and how to select one that no modality has."""
    if study.samples or "trc" in study.where.get(study.target, {}):
        return ""
    row = modality(study.target)
    labels = other_tracers(find_candidates(bids, row)[0], row)
    unknown = [label for label in labels if label.isalnum() and not is_known_tracer(label)]
    example = f"; select by study.where, such as {{{study.target}: {{trc: {unknown[0]}}}}}" if unknown else ""
    return f", which have the tracers {', '.join(labels)}{example}" if labels else ""


def subject_of(key: str) -> str:
    """Subject label in a scan's key, also if the key is invalid."""
    return key.removeprefix("sub-").split("_ses-")[0]


def _files(pairs: pd.DataFrame) -> list[Entry]:
    columns = [name for name in pairs.columns if name in ["source", "target", *EXTRA]]
    rows = pairs.to_dict("records")
    return [(Scan.parse(row["scan"]), Path(row[name])) for row in rows for name in columns if row[name]]


def _shares_a_source(group: Sequence[Entry], pairs: pd.DataFrame) -> bool:
    """Whether a table gives one source file to several scans of one subject, which is no copy."""
    files, subjects = {path.as_posix() for _, path in group}, {scan.subject for scan, _ in group}
    return len(files) == len(subjects) == 1 and not files & set(pairs["target"])


def _other_session(name: str, scan: Scan, *, can_join: bool) -> str:
    join = "set study.join_sessions: true, which pairs the only two of a subject, or " * can_join
    return f"{name} is in {scan.key}, another session: {join}list the pairs in a table (study.samples)"


def _remedy(scan: Scan, name: str, table: Path | None) -> str:
    row = modality(name)
    file = f"{scan.folder.as_posix()}/{row.datatype}/{scan.key}_{row.suffix}.nii.gz"
    return f"add its path to {table.name}" if table else f"add {file} (the same session) or remove the scan"
