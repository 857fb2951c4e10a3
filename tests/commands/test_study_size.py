"""What the number of people in each split of a study allows."""

import pytest

from dualflow.commands.study_size import people_by_split, size_warnings
from dualflow.config import SplitConfig
from dualflow.errors import ConfigError

SEVEN = [str(number) for number in range(7)]


def test_people_are_counted_as_the_index_splits_them():
    """By shares, names and folds; an unknown name is an error."""
    assert people_by_split(SEVEN, SplitConfig()) == {"train": 4, "validation": 1, "test": 2}
    assert people_by_split(SEVEN, SplitConfig(test_subjects=["1"]), ["8"])["test"] == 1
    assert people_by_split(SEVEN, SplitConfig(folds=7))["test"] == 1
    with pytest.raises(ConfigError, match="no such subjects: 9"):
        people_by_split(SEVEN, SplitConfig(test_subjects=["9"]))


def test_each_shortage_has_a_line_with_its_consequence():
    """A study with enough people has none."""
    lines = list(size_warnings({"train": 4, "validation": 1, "test": 2}))
    assert [line.split(":")[0] for line in lines] == [
        "4 training people, expected 24 or more",
        "4 training people, expected 10 or more",
        "1 validation people, expected 4 or more",
        "2 test people, expected 6 or more",
    ]
    assert [line.split(":")[0] for line in size_warnings({"train": 12, "validation": 4, "test": 6})] == [
        "12 training people, expected 24 or more"
    ]
    assert not list(size_warnings({"train": 24, "validation": 4, "test": 6}))
