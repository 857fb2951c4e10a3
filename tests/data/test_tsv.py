"""Tables in TSV files."""

import numpy as np
import pandas as pd
import pytest

from dualflow.data.tsv import MAX_COLUMNS, all_numbers, numbers, read_table, summarise_names, table_text
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
        (b"a\tb\n1\t2\t3\n", "more cells than its header"),
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
