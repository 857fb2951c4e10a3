"""Training, validation and test subjects: drawn with a seed and stratified, or read from a table."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from dualflow.config import SplitConfig
from dualflow.data.tsv import read_table, summarise_names
from dualflow.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")


def assign_folds(strata: Mapping[str, str], config: SplitConfig) -> dict[str, int]:
    """Assign every subject of `strata` to a fold, stratified; without `config.folds`, return no folds.

    With `config.file`, the folds are those of its column `fold`. The result depends only on labels, strata and seed.

    Raises:
        DataError: there are fewer subjects than folds, fold `config.fold` does not exist, or the table lacks a subject
            or has another number of folds.
    """
    if config.folds is None:
        return {}
    if config.file is not None:
        cells = _read_column(config.file, "fold", strata)
        folds = set(cells.values())
        if not all(fold.isdecimal() for fold in folds) or str(config.fold) not in folds:
            raise DataError(
                f"{config.file}: column 'fold' has {', '.join(sorted(folds))}, expected whole numbers with "
                f"{config.fold} among them; correct the column or split.fold"
            )
        # A comparison takes as many folds as this number says, and tests nobody of a further one.
        if config.folds != "leave-one-out" and {int(fold) for fold in folds} != set(range(config.folds)):
            raise DataError(
                f"{config.file}: column 'fold' has {', '.join(sorted(folds, key=int))}, expected 0 to "
                f"{config.folds - 1}, for there are {config.folds} folds; correct the column or the number of folds"
            )
        return {label: int(fold) for label, fold in cells.items()}
    count = len(strata) if config.folds == "leave-one-out" else config.folds
    if not max(config.fold, 1) < count <= len(strata):
        raise DataError(
            f"{len(strata)} subjects with a pair give no fold {config.fold} of {count}; "
            "change split.folds or split.fold"
        )
    return _draw_folds(strata, count, config.seed)


def assign_splits(
    strata: Mapping[str, str], config: SplitConfig, folds: Mapping[str, int] | None = None, known: Sequence[str] = ()
) -> dict[str, str]:
    """Assign every subject of `strata` (subject label -> stratum) to one of `SPLITS`.

    With `folds`, fold `config.fold` is the test set. With `config.file` alone, the splits are those of its column
    `split`. Otherwise subjects are shuffled within their stratum and sampled systematically over all strata, so each
    split has its share of each stratum, even of small ones. The result depends only on labels, strata, folds and seed.

    Args:
        strata: the subjects to draw from.
        config: shares, seed and named subjects. With three subjects or more, a share above zero gives at least one.
        folds: fold of every subject, from `assign_folds`; empty if the test set is drawn or named.
        known: labels that may be named but not drawn: excluded subjects, and subjects without a target.

    Raises:
        ConfigError: a named subject does not exist or is named twice, or the shares leave no training set.
        DataError: the training set is empty, or the table lacks a subject.
    """
    if folds:
        test = {label for label, fold in folds.items() if fold == config.fold}
    else:
        test = _named("test_subjects", config.test_subjects, {*strata, *known})
    if config.file is not None and not folds:
        splits = _read_splits(config.file, strata)
    else:
        validation = _named("validation_subjects", config.validation_subjects, {*strata, *known})
        splits = _draw_splits(strata, config, test, validation)
    if "train" not in splits.values():
        raise DataError(
            f"{len(strata)} subjects have a pair and none is left to train on; add subjects or hold out fewer"
        )
    return splits


def people_by_split(subjects: Collection[str], split: SplitConfig, known: Collection[str] = ()) -> Counter[str]:
    """Number of people in each split; it hardly depends on their strata, so all are in one.

    Args:
        subjects: labels of the subjects with a pair.
        split: how they are split.
        known: further labels that `split` may name.

    Raises:
        ConfigError: `split` names a subject that does not exist, or leaves no training set.
        DataError: there are too few subjects, or the table of splits lacks one.
    """
    strata = dict.fromkeys(subjects, "")
    return Counter(assign_splits(strata, split, assign_folds(strata, split), sorted({*subjects, *known})).values())


def _draw_folds(strata: Mapping[str, str], count: int, seed: int) -> dict[str, int]:
    from sklearn.model_selection import StratifiedKFold  # slow to import, and rarely needed

    labels, sizes = sorted(strata), Counter(strata.values())
    # StratifiedKFold needs strata with a subject for each fold, so smaller strata are pooled.
    pooled = [strata[label] if sizes[strata[label]] >= count else "" for label in labels]
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the pooled stratum may still be smaller than the number of folds
        parts = [test for _, test in splitter.split(np.zeros(len(labels)), pooled)]
    return {labels[position]: fold for fold, part in enumerate(parts) for position in part}


def _draw_splits(
    strata: Mapping[str, str], config: SplitConfig, test: set[str], validation: set[str]
) -> dict[str, str]:
    """Draw the test and validation sets that the configuration does not name."""
    if overlap := sorted(test & validation):
        raise ConfigError(f"split: {', '.join(overlap)} is named for test and for validation; keep one")
    shares = {"test": 0.0 if test else config.test, "validation": 0.0 if validation else config.validation}
    if sum(shares.values()) >= 1:
        raise ConfigError(f"split.test + split.validation = {sum(shares.values()):g}; keep the sum below 1")

    rng = np.random.default_rng(config.seed)
    order = [str(label) for label in rng.permutation(sorted(strata))]
    candidates = sorted((label for label in order if label not in test | validation), key=lambda label: strata[label])
    sizes = _sizes(shares, subjects=len(strata), candidates=len(candidates))
    drawn = {}
    for split in ("test", "validation"):
        drawn[split] = {candidates[position] for position in _even_steps(len(candidates), sizes[split], rng)}
        candidates = [label for label in candidates if label not in drawn[split]]
    test, validation = test | drawn["test"], validation | drawn["validation"]
    return {
        label: "test" if label in test else "validation" if label in validation else "train" for label in sorted(strata)
    }


def _read_splits(path: Path, subjects: Mapping[str, str]) -> dict[str, str]:
    splits = _read_column(path, "split", subjects)
    if unknown := sorted(set(splits.values()) - set(SPLITS)):
        raise DataError(
            f"{path}: column 'split' has {', '.join(unknown)}, expected {', '.join(SPLITS)}; correct the column"
        )
    return splits


def _read_column(path: Path, column: str, subjects: Mapping[str, str]) -> dict[str, str]:
    """The cell of each of `subjects` in a table that may list others too."""
    table = read_table(path, labels=("subject",))
    if missing_columns := [name for name in ("subject", column) if name not in table]:
        raise DataError(f"{path} has no column '{missing_columns[0]}' (found: {', '.join(table.columns)}); add it")
    labels = [(label or "").removeprefix("sub-") for label in table["subject"]]
    if repeated := sorted(label for label, count in Counter(labels).items() if count > 1 and label in subjects):
        raise DataError(f"{path} has more than one row for {summarise_names(repeated)}, expected one per subject")
    cells = {label: cell for label, cell in zip(labels, table[column], strict=True) if label in subjects and cell}
    if missing := sorted(set(subjects) - set(cells)):
        raise DataError(f"{path}: column '{column}' has no value for {summarise_names(missing)}; add one per subject")
    return dict(sorted(cells.items()))


def _named(field: str, labels: Sequence[str], known: set[str]) -> set[str]:
    named = {label.removeprefix("sub-") for label in labels}
    if unknown := sorted(named - known):
        raise ConfigError(f"split.{field}: no such subjects: {', '.join(unknown)}; use labels of the dataset")
    return named


def _sizes(shares: Mapping[str, float], *, subjects: int, candidates: int) -> dict[str, int]:
    """Number of subjects for each share, leaving at least one candidate to train on if there is any."""
    minimum = 1 if subjects >= 3 else 0
    sizes = {split: max(round(share * subjects), minimum) if share else 0 for split, share in shares.items()}
    while sum(sizes.values()) >= max(candidates, 1):
        sizes[max(sizes, key=lambda split: sizes[split])] -= 1
    return sizes


def _even_steps(length: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` evenly spaced positions below `length`, from a random start."""
    start = rng.random()
    return [int((step + start) * length / count) for step in range(count)]
