"""Splits and folds of subjects."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualflow.config import SplitConfig
from dualflow.data.split import assign_folds, assign_splits, people_by_split
from dualflow.errors import ConfigError, DataError

SEVEN = [str(number) for number in range(7)]


def subjects(count: int) -> dict[str, str]:
    return {f"{number:03d}": "AD" if number % 2 else "CN" for number in range(count)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(3, 60), st.floats(0.01, 0.49), st.floats(0.01, 0.49), st.integers(0, 99))
def test_no_split_is_empty(count, validation, test, seed):
    """With three subjects or more, the sizes follow the shares, and every subject has a split."""
    splits = assign_splits(subjects(count), SplitConfig(validation=validation, test=test, seed=seed))
    sizes = Counter(splits.values())
    assert set(splits) == set(subjects(count))
    assert min(sizes["train"], sizes["validation"], sizes["test"]) >= 1
    assert abs(sizes["test"] - test * count) <= 1
    assert abs(sizes["validation"] - validation * count) <= 1


def test_splits_depend_on_the_seed_but_not_on_the_order():
    """A seed gives the same splits for any order of subjects."""
    strata = subjects(20)
    reordered = dict(reversed(strata.items()))
    assert assign_splits(strata, SplitConfig(seed=1)) == assign_splits(reordered, SplitConfig(seed=1))
    draws = {tuple(assign_splits(strata, SplitConfig(seed=seed)).values()) for seed in range(8)}
    assert len(draws) > 4


def test_strata_are_balanced():
    """Each stratum has its share of the test and validation sets to within one subject."""
    strata = {f"{number:03d}": ["AD", "CN", "MCI"][number % 3] for number in range(24)}
    for seed in range(10):
        splits = assign_splits(strata, SplitConfig(test=0.25, validation=0.25, seed=seed))
        for split in ("test", "validation"):
            counts = Counter(stratum for label, stratum in strata.items() if splits[label] == split)
            assert all(abs(counts[stratum] - 2) <= 1 for stratum in ("AD", "CN", "MCI"))


def test_subjects_are_drawn_uniformly():
    """Over many seeds, each subject is in the test set about equally often."""
    counts = Counter(
        label
        for seed in range(200)
        for label, split in assign_splits(subjects(8), SplitConfig(seed=seed)).items()
        if split == "test"
    )
    assert len(counts) == 8
    assert all(25 < count < 80 for count in counts.values())


def test_named_subjects_replace_the_draw():
    """Named subjects are the complete test set; the validation set is drawn from the rest."""
    splits = assign_splits(subjects(10), SplitConfig(test_subjects=("sub-003", "004"), validation=0.2))
    assert [label for label, split in splits.items() if split == "test"] == ["003", "004"]
    assert Counter(splits.values())["validation"] == 2


def test_invalid_splits_are_errors():
    """Unknown subjects, a subject in both sets, shares that sum to 1, and an empty training set."""
    with pytest.raises(ConfigError, match="no such subjects: 997, 998"):
        assign_splits(subjects(4), SplitConfig(validation_subjects=("998", "997")))
    with pytest.raises(ConfigError, match="001 is named for test and for validation"):
        assign_splits(subjects(4), SplitConfig(test_subjects=("001",), validation_subjects=("001",)))
    with pytest.raises(ConfigError, match="below 1"):
        assign_splits(subjects(4), SplitConfig(test=0.6, validation=0.4))
    with pytest.raises(DataError, match="train on"):
        assign_splits(subjects(2), SplitConfig(test_subjects=("000", "001")))


def test_a_named_subject_may_be_excluded():
    """The list of names may contain an excluded subject of the dataset."""
    splits = assign_splits(subjects(4), SplitConfig(test_subjects=("001", "900")), known=["900"])
    assert "900" not in splits
    assert splits["001"] == "test"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(2, 8) | st.just("leave-one-out"), st.integers(1, 12), st.integers(0, 99))
def test_every_subject_is_in_one_fold(count, folds, strata, seed):
    """For strata of any size, the number of folds is as configured and their sizes differ by at most one."""
    labels = {f"{number:03d}": str(number**2 % strata) for number in range(count)}
    config = SplitConfig(folds=folds, seed=seed)
    expected = count if folds == "leave-one-out" else folds
    if expected > count:
        with pytest.raises(DataError, match=f"{count} subjects"):
            assign_folds(labels, config)
        return
    assigned = assign_folds(labels, config)
    sizes = Counter(assigned.values())
    assert assigned.keys() == labels.keys()
    assert sorted(sizes) == list(range(expected))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert assigned == assign_folds(dict(reversed(labels.items())), config)


def test_folds_are_balanced_over_strata_and_depend_on_the_seed():
    """Each fold has its share of each stratum, and another seed gives other folds."""
    strata = {f"{number:03d}": ["AD", "CN", "MCI"][number % 3] for number in range(60)}
    draws = [assign_folds(strata, SplitConfig(folds=5, seed=seed)) for seed in range(3)]
    for folds in draws:
        assert set(Counter((fold, strata[label]) for label, fold in folds.items()).values()) == {4}
    assert draws[0] != draws[1] != draws[2]


@pytest.mark.parametrize("folds", [4, "leave-one-out"])
def test_the_folds_are_the_test_sets_of_a_cross_validation(folds):
    """Over all folds, every subject is in the test set once; the validation set is drawn from the rest."""
    strata, tested = subjects(12), Counter()
    for fold in range(12 if folds == "leave-one-out" else folds):
        config = SplitConfig(folds=folds, fold=fold, validation=0.25)
        splits = assign_splits(strata, config, assign_folds(strata, config))
        tested.update(label for label, split in splits.items() if split == "test")
        assert Counter(splits.values())["validation"] == 3
    assert tested == Counter(list(strata))


TABLE = "subject\tfold\tsplit\n000\t1\ttest\nsub-001\t0\ttrain\n002\t1\tvalidation\nelse\tn/a\ttest\n"


@pytest.fixture
def split_file(tmp_path):
    """Return a function that writes a table of splits."""

    def write(text=TABLE):
        path = tmp_path / "splits.tsv"
        path.write_text(text)
        return path

    return write


def test_splits_are_read_from_a_table(split_file):
    """Other subjects of the table are ignored."""
    splits = assign_splits(subjects(3), SplitConfig(file=split_file()))
    assert splits == {"000": "test", "001": "train", "002": "validation"}


def test_folds_are_read_from_a_table(split_file):
    """The column `fold` gives the test set, and the validation set is drawn."""
    config = SplitConfig(file=split_file(), folds=2, fold=0, validation=0.4)
    folds = assign_folds(subjects(3), config)
    assert folds == {"000": 1, "001": 0, "002": 1}
    splits = assign_splits(subjects(3), config, folds)
    assert splits["001"] == "test"
    assert Counter(splits.values()) == {"test": 1, "train": 1, "validation": 1}


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        (TABLE.replace("002", "009"), {}, "column 'split' has no value for 002"),
        (TABLE.replace("validation", "n/a"), {}, "column 'split' has no value for 002"),
        (TABLE.replace("002", "000"), {}, "more than one row for 000"),
        (TABLE.replace("validation", "dev"), {}, "column 'split' has dev, expected train, validation, test"),
        (TABLE.replace("train", "test"), {}, "left to train on"),
        (TABLE.replace("subject", "participant"), {}, "no column 'subject'"),
        (TABLE.replace("split", "use"), {}, "no column 'split' .found: subject, fold, use"),
        (TABLE, {"folds": 3, "fold": 2}, "column 'fold' has 0, 1, expected whole numbers with 2 among them"),
        (TABLE.replace("\t1\t", "\tone\t"), {"folds": 2}, "expected whole numbers"),
        (TABLE, {"folds": 3}, "column 'fold' has 0, 1, expected 0 to 2, for there are 3 folds"),
        (TABLE.replace("\t1\t", "\t12\t"), {"folds": 2}, "column 'fold' has 0, 12, expected 0 to 1"),
    ],
)
def test_an_invalid_table_of_splits_is_an_error(split_file, text, config, message):
    """A subject is missing, listed twice or has no valid value."""
    config = SplitConfig(file=split_file(text), **config)
    with pytest.raises(DataError, match=message):
        assign_splits(subjects(3), config, assign_folds(subjects(3), config))


def test_people_are_counted_as_the_index_splits_them():
    """By shares, names and folds; an unknown name is an error."""
    assert people_by_split(SEVEN, SplitConfig()) == {"train": 4, "validation": 1, "test": 2}
    assert people_by_split(SEVEN, SplitConfig(test_subjects=["1"]), ["8"])["test"] == 1
    assert people_by_split(SEVEN, SplitConfig(folds=7))["test"] == 1
    with pytest.raises(ConfigError, match="no such subjects: 9"):
        people_by_split(SEVEN, SplitConfig(test_subjects=["9"]))
