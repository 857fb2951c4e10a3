import pytest

from dualflow.data.participants import side_values
from dualflow.errors import DataError
from dualflow.layout import Scan


def people(*labels: str) -> list[Scan]:
    return [Scan(label) for label in labels]


def test_missing_column_names_what_there_is(make_bids):
    """A column no table has stops the study and lists the columns that exist; so does a missing table."""
    root = make_bids([], "participant_id\tage\tsex\n")
    with pytest.raises(DataError, match=r"'iq' \(found: age, sex\)"):
        side_values(root, people("1"), ["age", "iq"])
    with pytest.raises(DataError, match=r"participants\.tsv is missing"):
        side_values(make_bids([], name="bare"), people("1"), ["age"])
    assert side_values(root, people("1"), [])[0].shape == (1, 0)


def test_unknown_values_are_supported(make_bids):
    """n/a, an empty cell and a person without a row are all unknown; no one is refused for it."""
    root = make_bids([], "participant_id\tage\tsex\nsub-1\t70\tF\nsub-2\tn/a\t\n")
    table, refused = side_values(root, people("1", "2", "3"), ["age", "sex"])
    assert table["age"].tolist()[0] == 70
    assert table["sex"].tolist()[0] == "F"
    assert table.isna().sum().tolist() == [2, 2]
    assert refused == {}


def test_word_in_a_numeric_column_costs_that_scan(make_bids):
    """Where most cells are numbers, a cell that is none is refused with its column and value."""
    root = make_bids([], "participant_id\tage\n1\t70\n2\t89+\n3\t71\n4\tinf\n5\t65\n")
    table, refused = side_values(root, people("1", "2", "3", "4", "5"), ["age"])
    assert set(refused) == {"sub-2", "sub-4"}
    assert "'age' is '89+'" in str(refused["sub-2"])
    assert table["age"].dtype == float


def test_numeric_codes_with_levels_are_text(make_bids):
    """A column of codes that participants.json explains by Levels is categorical, not a quantity."""
    root = make_bids([], "participant_id\tgroup\n1\t0\n2\t2\n", {"group": {"Levels": {"0": "control", "2": "AD"}}})
    assert side_values(root, people("1", "2"), ["group"])[0]["group"].tolist() == ["group-0", "group-2"]


def test_sessions_table_stands_before_participants(make_bids):
    """The age at a visit is taken from the visit's row; what the visit leaves out comes from the person."""
    root = make_bids(["sub-1/ses-a/x"], "participant_id\tage\tsex\n1\t60\tF\n")
    (root / "sub-1" / "sub-1_sessions.tsv").write_text("session_id\tage\nses-a\t61.5\nses-b\tn/a\n")
    table, _ = side_values(root, [Scan("1", "a"), Scan("1", "b"), Scan("1", "c")], ["age", "sex"])
    assert table["age"].tolist() == [61.5, 60, 60]
    assert table["sex"].tolist() == ["F", "F", "F"]


def test_person_with_two_rows_is_refused(make_bids):
    """Two rows for one person are not chosen between."""
    root = make_bids([], "participant_id\tage\n1\t60\n1\t61\n2\t62\n")
    assert set(side_values(root, people("1", "2"), ["age"])[1]) == {"sub-1"}


@pytest.mark.parametrize("text", [b"participant_id,age\n1,70\n", b"participant_id\tage\n1\t\xff\n", b""])
def test_table_that_is_no_bids_table_is_named(make_bids, text):
    """A comma-separated, non-UTF-8 or empty participants.tsv is one clear error."""
    root = make_bids([])
    (root / "participants.tsv").write_bytes(text)
    with pytest.raises(DataError, match=r"participants\.tsv"):
        side_values(root, people("1"), ["age"])
