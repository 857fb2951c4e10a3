"""Tables in TSV files."""

import numpy as np
import pandas as pd
import pytest

from dualflow.data.tsv import (
    MAX_COLUMNS,
    all_numbers,
    cell_text,
    numbers,
    read_table,
    read_typed_table,
    summarise_names,
    table_text,
)
from dualflow.errors import DataError


def test_a_table_reads_back_as_text(tmp_path):
    """Cells are stripped text, and all spellings of a missing value are None."""
    path = tmp_path / "table.tsv"
    path.write_bytes("\ufeffid\t age \n01\t 70\n02\tn/a\n03\t\n04\tNaN\n".encode())
    table = read_table(path)
    assert table["id"].tolist() == ["01", "02", "03", "04"]
    assert table["age"].tolist() == ["70", None, None, None]
    path.write_text(table_text(table))
    assert path.read_text() == "id\tage\n01\t70\n02\tn/a\n03\tn/a\n04\tn/a\n"
    pd.testing.assert_frame_equal(read_table(path), table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a table"),
        (b"\xff\xfe", "is not a table"),
        (b"a\tb\n1\t2\t3\n", "line 2 has 3 cells, more cells than its header"),
        (b"a\tb\n1\t2\n\n3\n", "line 4 has 1 cells, expected 2 .* write n/a"),
        (b"id\tage\tage\n1\t2\t3\n", "has 2 columns 'age'.* rename"),
        (b"id\tage\t age \n1\t2\t3\n", "has 2 columns 'age'"),
        (b'"id"\t"age"\n"1"\t2\n', 'column "id" has quotation marks.* quote=FALSE'),
        (b"\t" * MAX_COLUMNS + b"\n", f"has {MAX_COLUMNS + 1} columns .* keep the columns and rows"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, message):
    """The error names the file and what is wrong."""
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"table\.tsv.*{message}"):
        read_table(path)
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read"):
        read_table(tmp_path / "none.tsv")


def test_a_quotation_mark_is_an_ordinary_character(tmp_path):
    """A quote that never closes takes no further rows, and a table of quotes reads back equally."""
    path = tmp_path / "table.tsv"
    path.write_text('id\tnote\tage\n1\t"left\t70\n2\t6\' 2"\t71\n3\t""\t72\n')
    table = read_table(path)
    assert table["note"].tolist() == ['"left', "6' 2\"", '""']
    assert table["age"].tolist() == ["70", "71", "72"]
    path.write_text(table_text(table))
    pd.testing.assert_frame_equal(read_table(path), table)
    assert read_typed_table(path)["age"].tolist() == [70, 71, 72]


def test_columns_without_a_name_are_dropped(tmp_path):
    """Spreadsheets write empty columns, and row numbers under an empty name."""
    path = tmp_path / "table.tsv"
    path.write_text("\tid\tage\t\t\n0\t1\t70\t\t\n")
    assert read_table(path).to_dict("list") == {"id": ["1"], "age": ["70"]}


def test_tabs_and_line_ends_become_spaces(tmp_path):
    """A TSV cell cannot hold them; numbers and codes keep their type."""
    table = pd.DataFrame(
        {"a\tb": ["x\ty\r\nz", None, ""], "n": pd.Series([1, None, 3], dtype=object), "x": [0.1, 2, 3]}
    )
    assert table_text(table) == "a b\tn\tx\nx y z\t1\t0.1\nn/a\tn/a\t2.0\nn/a\t3\t3.0\n"
    assert table_text(pd.DataFrame({"a": ["", "b"]})) == "a\nn/a\nb\n"


def test_small_numbers_keep_significant_digits(tmp_path):
    """They keep their order, and other columns their type."""
    table = pd.DataFrame({"region": ["a", "b"], "p": [1e-20, 2.3456789e-30], "scans": [1234567, 2]})
    (tmp_path / "a.tsv").write_text(table_text(table, significant=6))
    again = read_typed_table(tmp_path / "a.tsv")
    assert again["p"].tolist() == [1e-20, 2.34568e-30]
    assert again["scans"].tolist() == [1234567, 2]


def test_labels_stay_as_they_are(tmp_path):
    """A subject or a model may be called NA, nan or 001; only n/a and an empty cell are no label."""
    path = tmp_path / "table.tsv"
    labels = ["NA", "nan", "001", "inf", None]
    path.write_text(table_text(pd.DataFrame({"subject": labels, "model": labels, "mae": [1.5, None, 2, np.inf, 3]})))
    again = read_typed_table(path)
    assert again["subject"].tolist()[:4] == again["model"].tolist()[:4] == labels[:4]
    assert again[["subject", "model"]].isna().sum().tolist() == [1, 1]
    np.testing.assert_array_equal(again["mae"], [1.5, np.nan, 2, np.inf, 3])
    table = read_table(path, labels=("subject",))
    assert table["subject"].tolist() == labels
    assert table["model"].tolist() == [None, None, "001", "inf", None]


def test_numbers_are_finite():
    """Text and infinite numbers are NaN; a column is numeric if every known cell is a finite number."""
    column = pd.Series(["1.5", "x", "inf", None, "-2"], dtype=object)
    np.testing.assert_array_equal(numbers(column), [1.5, np.nan, np.nan, np.nan, -2])
    assert not all_numbers(column)
    assert all_numbers(pd.Series(["1", None, "2e3"], dtype=object))
    assert all_numbers(pd.Series([None, None], dtype=object))


def test_long_lists_of_names_are_summarised():
    """The first names are listed, and the rest are counted."""
    assert summarise_names(["a", "b"]) == "a, b"
    assert summarise_names(["a", "b", "c"], limit=2) == "a, b and 1 more"


def test_cells_are_shown_as_text():
    """Numbers lose superfluous digits."""
    assert [cell_text(cell) for cell in (71.0, "F", None, float("nan"))] == ["71", "F", "n/a", "n/a"]
    assert cell_text(None, "-") == "-"
