"""Who trains, who validates, who tests: drawn by person, seeded, and balanced over one categorical column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dualflow.config import SplitConfig
from dualflow.errors import ConfigError, DataError


def assign_splits(strata: Mapping[str, str], config: SplitConfig, known: Sequence[str] = ()) -> dict[str, str]:
    """Give every person of `strata` (subject label -> stratum) one of `train`, `validation`, `test`.

    People are put in a seeded order within their stratum and then taken at even steps through all strata (systematic
    sampling), so that each stratum has its share in each split even where it holds few people. The result depends on
    labels, strata and seed alone.

    Args:
        strata: the people to draw from.
        config: shares, seed and people named outright. With three people or more, a share above zero means at least
            one person.
        known: further labels that may be named although there is nothing to draw (set aside, or without a target).

    Raises:
        ConfigError: a named person does not exist or is named twice, or the shares leave nothing to train on.
        DataError: no one is left to train on.
    """
    test = _named("test_subjects", config.test_subjects, {*strata, *known})
    validation = _named("validation_subjects", config.validation_subjects, {*strata, *known})
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
    if not free:
        raise DataError(
            f"{len(strata)} people have a pair and none is left to train on; add people or hold out fewer of them"
        )
    test, validation = test | drawn["test"], validation | drawn["validation"]
    return {
        label: "test" if label in test else "validation" if label in validation else "train" for label in sorted(strata)
    }


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
