from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualflow.config import SplitConfig
from dualflow.data.split import assign_splits
from dualflow.errors import ConfigError, DataError


def people(count: int) -> dict[str, str]:
    return {f"{number:03d}": "AD" if number % 2 else "CN" for number in range(count)}


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 60), st.floats(0.01, 0.49), st.floats(0.01, 0.49), st.integers(0, 99))
def test_every_share_above_zero_gets_someone(count, validation, test, seed):
    """With three people or more each split has someone, sizes keep to the shares, and no one is left out."""
    splits = assign_splits(people(count), SplitConfig(validation=validation, test=test, seed=seed))
    sizes = Counter(splits.values())
    assert set(splits) == set(people(count))
    assert min(sizes["train"], sizes["validation"], sizes["test"]) >= 1
    assert abs(sizes["test"] - test * count) <= 1
    assert abs(sizes["validation"] - validation * count) <= 1


def test_seed_decides_and_order_does_not():
    """One seed gives one draw for any order of people; other seeds give other draws."""
    strata = people(20)
    turned = dict(reversed(strata.items()))
    assert assign_splits(strata, SplitConfig(seed=1)) == assign_splits(turned, SplitConfig(seed=1))
    draws = {tuple(assign_splits(strata, SplitConfig(seed=seed)).values()) for seed in range(8)}
    assert len(draws) > 4


def test_strata_are_balanced():
    """Each stratum has its share of the test and validation sets to within one person."""
    strata = {f"{number:03d}": ["AD", "CN", "MCI"][number % 3] for number in range(24)}
    for seed in range(10):
        splits = assign_splits(strata, SplitConfig(test=0.25, validation=0.25, seed=seed))
        for split in ("test", "validation"):
            counts = Counter(stratum for label, stratum in strata.items() if splits[label] == split)
            assert all(abs(counts[stratum] - 2) <= 1 for stratum in ("AD", "CN", "MCI"))


def test_every_person_can_be_drawn():
    """Over many seeds each person is tested about as often as any other."""
    counts = Counter(
        label
        for seed in range(200)
        for label, split in assign_splits(people(8), SplitConfig(seed=seed)).items()
        if split == "test"
    )
    assert len(counts) == 8
    assert all(25 < count < 80 for count in counts.values())


def test_named_people_replace_the_draw():
    """People named for a set are that whole set; the other set is still drawn from the rest."""
    splits = assign_splits(people(10), SplitConfig(test_subjects=("sub-003", "004"), validation=0.2))
    assert [label for label, split in splits.items() if split == "test"] == ["003", "004"]
    assert Counter(splits.values())["validation"] == 2


def test_refused_splits_say_why():
    """Unknown names, a person named twice, shares of one and no one left to train on are each refused."""
    with pytest.raises(ConfigError, match="no such people: 997, 998"):
        assign_splits(people(4), SplitConfig(validation_subjects=("998", "997")))
    with pytest.raises(ConfigError, match="001 is named for test and for validation"):
        assign_splits(people(4), SplitConfig(test_subjects=("001",), validation_subjects=("001",)))
    with pytest.raises(ConfigError, match="below 1"):
        assign_splits(people(4), SplitConfig(test=0.6, validation=0.4))
    with pytest.raises(DataError, match="train on"):
        assign_splits(people(2), SplitConfig(test_subjects=("000", "001")))


def test_named_person_set_aside_is_no_error():
    """A person of the dataset who has been set aside may stay in the list of names."""
    splits = assign_splits(people(4), SplitConfig(test_subjects=("001", "900")), known=["900"])
    assert "900" not in splits
    assert splits["001"] == "test"
