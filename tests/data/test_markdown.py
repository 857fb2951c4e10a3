"""Tables in Markdown."""

import numpy as np
import pandas as pd

from dualflow.data.markdown import Column, markdown_table, p_statement, table

FRAME = pd.DataFrame(
    {"model": ["a", "b"], "mae": [0.12345, np.nan], "mae_low": [0.1, np.nan], "mae_high": [0.2, np.nan],
     "share": [-0.00001, 0.5], "empty": [np.nan, np.nan]}
)  # fmt: skip


def test_columns_are_aligned():
    """Names are aligned to the left and numbers to the right."""
    assert markdown_table([("name", "n"), ("long name", "1"), ("x", "100")]).splitlines() == [
        "| name      |   n |",
        "| --------- | --: |",
        "| long name |   1 |",
        "| x         | 100 |",
    ]


def test_values_have_digits_scale_and_interval():
    """Unknown values are n/a, values that round to zero have no sign, and empty columns are dropped."""
    columns = [
        Column("MAE", ["mae"], 2, interval=True), Column("%", ["share"], 1, scale=100), Column("none", ["empty"]),
        Column("both", ["share", "mae"], 1),
    ]  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(FRAME, columns).splitlines()]
    assert rows[0] == ["flow", "MAE", "%", "both"]
    assert rows[2] == ["a", "0.12 (0.10 to 0.20)", "0.0", "0.0 / 0.1"]
    assert rows[3] == ["b", "n/a", "50.0", "0.5 / n/a"]
    assert table(FRAME, [Column("none", ["empty"])]) == ""


def test_effects_of_any_unit_keep_significant_digits():
    """An effect per mm3 is not 0."""
    frame = pd.DataFrame({"model": ["a"], "x": [4.27e-7], "x_low": [3.1e-7], "x_high": [0.01234]})
    text = table(frame, [Column("x", ["x"], 3, interval=True, significant=True)])
    assert "4.27e-07 (3.1e-07 to 0.0123)" in text


def test_small_p_values_are_not_0():
    frame = pd.DataFrame({"model": ["a", "b", "c"], "p": [3e-6, 0.0312, None]})
    lines = table(frame.assign(x=1.0), [Column("p", ["p"], 3, probability=True), Column("x", ["x"])]).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["< 0.001", "0.031", "n/a"]
    assert [p_statement(value) for value in (3e-6, 0.001, 0.0312)] == ["p < 0.001", "p = 0.001", "p = 0.031"]
