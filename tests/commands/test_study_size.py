"""What the number of people in each split of a study allows."""

from dualflow.commands.study_size import size_warnings


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
