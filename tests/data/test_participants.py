"""Side information from participants and sessions tables."""

import pytest

from dualflow.data.participants import guessed_types, known_columns, side_values
from dualflow.data.side_encoder import Categorical, SideEncoder
from dualflow.errors import DataError
from dualflow.layout import Scan


def scans(*labels: str) -> list[Scan]:
    return [Scan(label) for label in labels]


def test_a_missing_column_is_an_error(make_bids):
    """The error lists the existing columns, or names the missing or empty table."""
    root = make_bids([], "participant_id\tage\tsex\n")
    with pytest.raises(DataError, match=r"'iq' \(found: age, sex\)"):
        side_values(root, scans("1"), ["age", "iq"])
    with pytest.raises(DataError, match=r"participants\.tsv is missing"):
        side_values(make_bids([], name="bare"), scans("1"), ["age"])
    assert side_values(root, scans("1"), [])[0].shape == (1, 0)
    with pytest.raises(DataError, match=r"participants\.tsv has no rows"):
        side_values(make_bids([], "participant_id\tage\n", name="empty"), scans("1"), ["age"])


def test_unknown_values_are_supported(make_bids):
    """Missing cells and rows are unknown values, and exclude no scan."""
    root = make_bids([], "participant_id\tage\tsex\nsub-1\t70\tF\nsub-2\tn/a\t\n")
    table, refused = side_values(root, scans("1", "2", "3"), ["age", "sex"])
    assert table["age"].tolist()[0] == 70
    assert table["sex"].tolist()[0] == "F"
    assert table.isna().sum().tolist() == [2, 2]
    assert refused == {}


def test_na_is_a_label(make_bids):
    """Initials may be NA, also without the prefix; in other columns it is an unknown value."""
    root = make_bids([], "participant_id\tage\tsex\nNA\t60\tNA\n")
    table, _ = side_values(root, scans("NA"), ["age", "sex"])
    assert table["age"].tolist() == [60]
    assert table["sex"].isna().all()


def test_known_columns_are_those_of_both_tables(make_bids):
    """Columns of participants and sessions tables are known; a damaged sessions table does not matter."""
    root = make_bids(["sub-1/x", "sub-2/x"], "participant_id\tsex\n1\tF\n2\tM\n")
    (root / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-1\t70\n")
    (root / "sub-2/sub-2_sessions.tsv").write_bytes(b"\xff\x00")
    assert {"sex", "age"} <= set(known_columns(root))
    (root / "participants.tsv").unlink()
    assert known_columns(root) == []


def test_a_word_in_a_numeric_column_excludes_the_scan(make_bids):
    """In a column of mostly numbers, text excludes the scan; the reason has column and value."""
    root = make_bids([], "participant_id\tage\n1\t70\n2\t89+\n3\t71\n4\tinf\n5\t65\n")
    table, refused = side_values(root, scans("1", "2", "3", "4", "5"), ["age"])
    assert set(refused) == {"sub-2", "sub-4"}
    assert "'age' is '89+'" in str(refused["sub-2"])
    assert table["age"].dtype == float


@pytest.mark.parametrize("cell", ["89+", ">89", ">= 89", "≥89"])
def test_a_capped_number_names_what_to_write(make_bids, cell):
    """Shared datasets cap ages, which the advice to write 45.5 would not settle."""
    root = make_bids([], f"participant_id\tage\n1\t61\n2\t{cell}\n3\t70.5\n4\told\n5\t80\n")
    table, refused = side_values(root, scans("1", "2", "3", "4", "5"), ["age"])
    assert table["age"].isna().tolist() == [False, True, False, True, False]
    assert "write 89, or n/a" in str(refused["sub-2"])
    assert "write a plain number such as 45.5, or n/a" in str(refused["sub-4"])


@pytest.mark.parametrize("cells", [("45,5", "61,0", "70"), ("45 years", "61 y", "n/a"), ("45y.", "1.234,5", "70")])
def test_numbers_with_a_unit_or_decimal_comma_are_no_categories(make_bids, cells):
    """The column is numeric, and each such cell excludes its scan with the remedy."""
    rows = "".join(f"{number}\t{cell}\n" for number, cell in enumerate(cells))
    table, refused = side_values(make_bids([], f"participant_id\tage\n{rows}"), scans("0", "1", "2"), ["age"])
    assert table["age"].dtype == float
    assert {"sub-0", "sub-1"} == set(refused)
    assert f"'age' is '{cells[0]}'" in str(refused["sub-0"])
    assert "write a plain number such as 45.5" in str(refused["sub-0"])


@pytest.mark.parametrize(
    "cells",
    [("<60", "60-69"), ("70+", "<70"), ("2020-01-01", "2021-01-01"), ("T1", "T2"), ("3T", "1.5T"), ("1a", "2b")],
)
def test_ranges_dates_and_codes_are_categories(make_bids, cells):
    """Text that is no number with a unit stays text."""
    root = make_bids([], "participant_id\tx\n" + "".join(f"{number}\t{cell}\n" for number, cell in enumerate(cells)))
    table, refused = side_values(root, scans("0", "1"), ["x"])
    assert table["x"].tolist() == list(cells)
    assert refused == {}


def test_declared_units_make_a_column_numeric(make_bids):
    """With Units, text is invalid even where most cells are text; with Levels, numbers with a unit are categories."""
    declared = {"age": {"Units": "years"}, "field": {"Levels": {"3T": "3 tesla", "7T": "7 tesla"}}}
    root = make_bids([], "participant_id\tage\tfield\n1\told\t3T\n2\tyoung\t7T\n3\t70\t7T\n", declared)
    table, refused = side_values(root, scans("1", "2", "3"), ["age", "field"])
    assert set(refused) == {"sub-1", "sub-2"}
    assert table["field"].tolist() == ["3T", "7T", "7T"]


def test_empty_declarations_declare_nothing(make_bids):
    """Tools write templates of participants.json with every field."""
    declared = {"age": {"Levels": [], "Units": "years"}, "sex": {"Levels": {}, "Units": "n/a"}}
    root = make_bids([], "participant_id\tage\tsex\n1\t45\tF\n2\t50.5\tM\n", declared)
    table, refused = side_values(root, scans("1", "2"), ["age", "sex"])
    assert table["age"].tolist() == [45, 50.5]
    assert table["sex"].tolist() == ["F", "M"]
    assert refused == {}


def test_guessed_types_are_named(make_bids):
    """Each known column without Levels or Units has a line that says how to declare it."""
    declared = {"site": {"Levels": {"A": "a"}}, "weight": {"Units": "kg"}, "age": {"Description": "age"}}
    text = "participant_id\tage\tsex\tsite\tweight\tiq\n1\t70\tF\tA\t60\tn/a\n"
    root = make_bids([], text, declared)
    sidecar = root / "participants.json"
    lines = guessed_types(side_values(root, scans("1"), ["age", "sex", "site", "weight", "iq"])[0], sidecar)
    assert lines == {
        "age": "side column 'age' is taken as numbers: participants.json does not declare its type; "
        "add its Units there, or its Levels if the numbers are codes",
        "sex": "side column 'sex' is taken as categories (F): participants.json does not declare its type; "
        "add its Levels there, or its Units if it holds numbers",
    }


def test_numeric_codes_with_levels_are_text(make_bids):
    """A column of codes that participants.json explains by Levels is categorical, not a quantity."""
    root = make_bids([], "participant_id\tgroup\n1\t0\n2\t2\n", {"group": {"Levels": {"0": "control", "2": "AD"}}})
    assert side_values(root, scans("1", "2"), ["group"])[0]["group"].tolist() == ["group-0", "group-2"]


def test_codes_with_decimals_are_the_codes_without(make_bids):
    """Programs write whole numbers as 1.0 in a column with unknown values, and as 1 in one without."""
    declared = {"cdr": {"Levels": {"0": "none", "0.5": "very mild", "1": "mild"}}}
    root = make_bids([], "participant_id\tcdr\n1\t1.0\n2\t0.5\n3\tn/a\n4\t0.0\n", declared)
    table = side_values(root, scans("1", "2", "3", "4"), ["cdr"])[0]
    assert table["cdr"].tolist() == ["cdr-1", "cdr-0.5", None, "cdr-0"]
    level = Categorical("cdr", ("cdr-0", "cdr-0.5", "cdr-1")).level
    assert [level(text) for text in ("1", "1.0", "0.50", "cdr-0", "2")] == ["cdr-1", "cdr-1", "cdr-0.5", "cdr-0", None]
    assert Categorical("cdr", ("cdr-1.0",)).level("1.0") == "cdr-1.0"  # of a model trained earlier


def test_numbers_among_categories_are_categories_in_every_subset(make_bids):
    """The rows that are left after an exclusion may be those of numbers alone."""
    root = make_bids([], "participant_id\tsite\n1\t1\n2\t2\n3\tA\n4\tB\n")
    assert side_values(root, scans("1", "2", "3", "4"), ["site"])[0]["site"].tolist() == ["site-1", "site-2", "A", "B"]


def test_levels_that_a_model_knows_do_not_depend_on_other_rows(make_bids):
    """A scan alone, whose level looks like a number, has the level that it has in its table."""
    root = make_bids([], "participant_id\tsite\tgroup\n1\t1\t2\n2\tA\t0\n3\tn/a\t7\n")
    columns = (Categorical("site", ("1", "A")), Categorical("group", ("group-0", "group-2")))
    known = {column.name: column.level for column in columns}
    for labels in (("1", "2", "3"), ("1",)):
        table = side_values(root, scans(*labels), ["site", "group"], known)[0]
        assert table["site"].tolist() == ["1", "A", None][: len(labels)]
        assert table["group"].tolist() == ["group-2", "group-0", "7"][: len(labels)]


def test_codes_with_levels_are_the_same_text_in_every_subset(make_bids):
    """Beside levels that are words too, so that training scans with codes alone learn the levels of all others."""
    declared = {"site": {"Levels": {"1": "one", "2": "two", "EXT": "external"}}}
    root = make_bids([], "participant_id\tsite\n1\t1\n2\t2\n3\tEXT\n4\tn/a\n", declared)
    table = side_values(root, scans("1", "2", "3", "4"), ["site"])[0]
    assert table["site"].tolist() == ["site-1", "site-2", "EXT", None]
    codes = side_values(root, scans("1", "2"), ["site"])[0]
    assert codes["site"].tolist() == ["site-1", "site-2"]
    for training, others in ((codes, table), (table, codes)):
        encoded = SideEncoder.fit(training, ["site"]).encode(others)
        assert encoded[:2].isfinite().all()


def test_sessions_table_precedes_participants(make_bids):
    """Values of a session come from its row, those of columns that its table lacks from participants.tsv.

    Without a row or a known cell they are unknown, because participants.tsv may hold those of another session; so
    neither an age that was not noted nor a label that differs, such as 1 for 01, gives a follow-up the age at baseline.
    """
    root = make_bids(["sub-1/ses-a/x"], "participant_id\tage\tsex\n1\t60\tF\n")
    (root / "sub-1" / "sub-1_sessions.tsv").write_text("session_id\tage\nses-a\t61.5\nses-b\tn/a\n")
    table, _ = side_values(root, [Scan("1", "a"), Scan("1", "b"), Scan("1", "c"), Scan("1")], ["age", "sex"])
    assert table["age"].fillna(0).tolist() == [61.5, 0, 0, 60]
    assert table["sex"].tolist() == ["F", "F", "F", "F"]


def test_a_column_of_another_subjects_sessions_is_unknown(make_bids):
    """One visit with a column, and without a scan, must not stop the others."""
    root = make_bids(["sub-1/ses-a/x"], "participant_id\tage\n1\t60\n2\t70\n")
    (root / "sub-1" / "sub-1_sessions.tsv").write_text("session_id\tmmse\nses-a\t29\n")
    assert known_columns(root) == ["age", "mmse"]
    table, refused = side_values(root, [Scan("2", "a"), Scan("2", "b")], ["age", "mmse"])
    assert table["age"].tolist() == [70, 70]
    assert table["mmse"].isna().all()
    assert not refused
    with pytest.raises(DataError, match=r"no column 'iq' \(found: age, mmse\)"):
        side_values(root, [Scan("2", "a")], ["iq"])


def test_a_subject_with_two_rows_is_excluded(make_bids):
    """Two rows of one subject are ambiguous."""
    root = make_bids([], "participant_id\tage\n1\t60\n1\t61\n2\t62\n")
    assert set(side_values(root, scans("1", "2"), ["age"])[1]) == {"sub-1"}


@pytest.mark.parametrize("text", [b"session_id,age\nses-a,61\n", b"\xff", b"", b"session_id\tage\nses-a\t61\t\n"])
def test_an_unreadable_sessions_table_excludes_its_subject(make_bids, text):
    """Other subjects keep their values; all sessions of the subject are excluded with the name of the table."""
    root = make_bids(["sub-1/ses-a/x", "sub-2/ses-a/x"], "participant_id\tage\n1\t60\n2\t62\n")
    (root / "sub-1" / "sub-1_sessions.tsv").write_bytes(text)
    table, refused = side_values(root, [Scan("1", "a"), Scan("1", "b"), Scan("2", "a")], ["age"])
    assert set(refused) == {"sub-1_ses-a", "sub-1_ses-b"}
    assert all("sub-1_sessions.tsv" in str(error) for error in refused.values())
    assert table["age"].tolist()[2] == 62


@pytest.mark.parametrize(
    "text",
    [b"participant_id,age\n1,70\n", b"participant_id\tage\n1\t\xff\n", b"", b"participant_id\tage\n1\t70\t\n"],
)
def test_an_invalid_participants_table_is_an_error(make_bids, text):
    """The error names a table that is comma-separated, not UTF-8, empty, or has cells without a heading."""
    root = make_bids([])
    (root / "participants.tsv").write_bytes(text)
    with pytest.raises(DataError, match=r"participants\.tsv"):
        side_values(root, scans("1"), ["age"])
