"""Who trains, who validates, who tests: by person, seeded, balanced over strata; or as a kept table says."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dualflow.config import SplitConfig
from dualflow.data.tsv import read_table, shortlist
from dualflow.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")


def assign_folds(strata: Mapping[str, str], config: SplitConfig) -> dict[str, int]:
    """Give every person of `strata` a fold, so that each stratum is spread over all; no one where none are asked for.

    With `config.file` the folds are those of its column `fold`. The result depends on labels, strata and seed alone.

    Raises:
        DataError: there are fewer people than folds, or no fold `config.fold`, or the kept table lacks someone.
    """
    if config.folds is None:
        return {}
    if config.file is not None:
        kept = _kept(config.file, "fold", strata)
        there = set(kept.values())
        if not all(fold.isdecimal() for fold in there) or str(config.fold) not in there:
            found = ", ".join(sorted(there))
            raise DataError(f"{config.file}: expected whole numbers and {config.fold} among them (found: {found})")
        return {label: int(fold) for label, fold in kept.items()}
    count = len(strata) if config.folds == "leave-one-out" else config.folds
    if not max(config.fold, 1) < count <= len(strata):
        raise DataError(
            f"{len(strata)} people with a pair make no fold {config.fold} of {count}; change split.folds or split.fold"
        )
    return _draw_folds(strata, count, config.seed)


def assign_splits(
    strata: Mapping[str, str], config: SplitConfig, folds: Mapping[str, int] | None = None, known: Sequence[str] = ()
) -> dict[str, str]:
    """Give every person of `strata` (subject label -> stratum) one of `SPLITS`.

    With `folds`, fold `config.fold` is the test set. With `config.file` instead, all is as its column `split` says.
    Otherwise people are put in a seeded order within their stratum and then taken at even steps through all strata
    (systematic sampling), so that each stratum has its share in each split even where it holds few people. The result
    depends on labels, strata, folds and seed alone.

    Args:
        strata: the people to draw from.
        config: shares, seed and people named outright. With three people or more, a share above zero means at least
            one person.
        folds: fold of every person, from `assign_folds`; none where the test set is drawn or named.
        known: further labels that may be named although there is nothing to draw (set aside, or without a target).

    Raises:
        ConfigError: a named person does not exist or is named twice, or the shares leave nothing to train on.
        DataError: no one is left to train on, or the kept table lacks someone.
    """
    if folds:
        test = {label for label, fold in folds.items() if fold == config.fold}
    else:
        test = _named("test_subjects", config.test_subjects, {*strata, *known})
    if config.file is not None and not folds:
        splits = _kept_splits(config.file, strata)
    else:
        validation = _named("validation_subjects", config.validation_subjects, {*strata, *known})
        splits = _draw_splits(strata, config, test, validation)
    if "train" not in splits.values():
        raise DataError(
            f"{len(strata)} people have a pair and none is left to train on; add people or hold out fewer of them"
        )
    return splits


def _draw_folds(strata: Mapping[str, str], count: int, seed: int) -> dict[str, int]:
    from sklearn.model_selection import StratifiedKFold  # takes a second to import, and few studies need it

    labels, sizes = sorted(strata), Counter(strata.values())
    # Strata that do not reach every fold are one stratum together, for StratifiedKFold wants one that does.
    pooled = [strata[label] if sizes[strata[label]] >= count else "" for label in labels]
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is left over may still be fewer than the folds
        parts = [test for _, test in splitter.split(np.zeros(len(labels)), pooled)]
    return {labels[position]: fold for fold, part in enumerate(parts) for position in part}


def _draw_splits(
    strata: Mapping[str, str], config: SplitConfig, test: set[str], validation: set[str]
) -> dict[str, str]:
    """Draw what is not given of the test and the validation set."""
    if both := sorted(test & validation):
        raise ConfigError(f"split: {', '.join(both)} is named for test and for validation; choose one")
    shares = {"test": 0.0 if test else config.test, "validation": 0.0 if validation else config.validation}
    if sum(shares.values()) >= 1:
        raise ConfigError(f"split.test + split.validation = {sum(shares.values()):g}; keep the sum below 1")

    random = np.random.default_rng(config.seed)
    order = [str(label) for label in random.permutation(sorted(strata))]
    free = sorted((label for label in order if label not in test | validation), key=lambda label: strata[label])
    sizes = _sizes(shares, people=len(strata), free=len(free))
    drawn = {}
    for split in ("test", "validation"):
        drawn[split] = {free[position] for position in _even_steps(len(free), sizes[split], random)}
        free = [label for label in free if label not in drawn[split]]
    test, validation = test | drawn["test"], validation | drawn["validation"]
    return {
        label: "test" if label in test else "validation" if label in validation else "train" for label in sorted(strata)
    }


def _kept_splits(path: Path, people: Mapping[str, str]) -> dict[str, str]:
    kept = _kept(path, "split", people)
    if wrong := sorted(set(kept.values()) - set(SPLITS)):
        raise DataError(f"{path}: splits are {', '.join(SPLITS)} (found: {', '.join(wrong)}); mend the column 'split'")
    return kept


def _kept(path: Path, column: str, people: Mapping[str, str]) -> dict[str, str]:
    """The cell of everyone of `people` in a kept table; whom else it lists does not matter."""
    table = read_table(path)
    if lacking := [name for name in ("subject", column) if name not in table]:
        raise DataError(f"{path} has no column '{lacking[0]}' (found: {', '.join(table.columns)}); add it")
    labels = [(label or "").removeprefix("sub-") for label in table["subject"]]
    if twice := sorted(label for label, count in Counter(labels).items() if count > 1 and label in people):
        raise DataError(f"{path} has more than one row for {shortlist(twice)}; keep one, for no person is split")
    kept = {label: cell for label, cell in zip(labels, table[column], strict=True) if label in people and cell}
    if missing := sorted(set(people) - set(kept)):
        raise DataError(
            f"{path} says nothing of {shortlist(missing)} in column '{column}'; add them, for no one is placed unasked"
        )
    return dict(sorted(kept.items()))


def _named(field: str, labels: Sequence[str], known: set[str]) -> set[str]:
    named = {label.removeprefix("sub-") for label in labels}
    if unknown := sorted(named - known):
        raise ConfigError(f"split.{field}: no such people: {', '.join(unknown)}; give labels of the dataset")
    return named


def _sizes(shares: Mapping[str, float], *, people: int, free: int) -> dict[str, int]:
    """How many people each share means, leaving at least one of the `free` to train on if there are any."""
    least = 1 if people >= 3 else 0
    sizes = {split: max(round(share * people), least) if share else 0 for split, share in shares.items()}
    while sum(sizes.values()) >= max(free, 1):
        sizes[max(sizes, key=lambda split: sizes[split])] -= 1
    return sizes


def _even_steps(length: int, count: int, random: np.random.Generator) -> list[int]:
    """`count` positions at even steps through `length`, from a random start."""
    start = random.random()
    return [int((step + start) * length / count) for step in range(count)]
