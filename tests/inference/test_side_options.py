"""Side information by name: checks, and notes on unknown values."""

import pandas as pd
import pytest

from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.errors import ConfigError
from dualflow.inference.side_options import describe_columns, side_cells, side_notes

ENCODER = SideEncoder(
    (
        Continuous("age", 71.26, 8.1),
        Categorical("sex", ("F", "M")),
        Categorical("Scan_Group", ("Scan_Group-1", "Scan_Group-2")),
        Continuous("dose", None, 0.0),
    )
)


def test_values_become_numbers_and_levels():
    """Case and hyphens of names do not matter; a code stands for its level; n/a is unknown."""
    values = {"AGE": "71", "sex": "F", "scan-group": 2, "dose": None}
    assert side_cells(ENCODER, values) == {"age": 71.0, "sex": "F", "Scan_Group": "Scan_Group-2", "dose": None}
    assert side_cells(ENCODER, {"age": 71, "sex": "n/a"}) == {"age": 71.0, "sex": None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aeg": 71}, "no option or side column 'aeg' (did you mean age?)"),
        ({"samplez": 71}, "(did you mean samples?)"),
        ({"weight": 71}, "are: age (a number; 71.3 ± 8.1 in training), sex (F, M), Scan_Group (Scan_Group-1, "),
        ({"age": "old"}, "--age is 'old', expected a number; 71.3 ± 8.1 in training, or n/a"),
        ({"age": "inf"}, "--age is 'inf'"),
        ({"age": True}, "--age is 'True'"),
        ({"sex": "f"}, "--sex is 'f', expected one of F, M, or n/a"),
        ({"age": 1, "Age": 2}, "--age is given twice"),
    ],
)
def test_wrong_names_and_values_are_refused(values, message):
    """The error lists the columns of the model, or what training saw of a column."""
    with pytest.raises(ConfigError) as error:
        side_cells(ENCODER, values, ["samples", "seed"])
    assert message in str(error.value)


def test_unknown_values_are_counted():
    """One line names columns that are absent or partly unknown; another one names levels without training scans."""
    rows = pd.DataFrame({"age": [70.0, None, None], "sex": ["F", None, "X"]})
    assert side_notes(ENCODER, rows, "no column in participants.tsv") == [
        "side information unknown: age (2 of 3 scans), sex (1 of 3 scans), Scan_Group (no column in participants.tsv), "
        "dose (no column in participants.tsv)",
        "not seen in training, so unknown: sex X (1 of 3 scans)",
    ]
    complete = pd.DataFrame({"age": [70.0], "sex": ["M"], "Scan_Group": ["Scan_Group-1"], "dose": [3]})
    assert side_notes(ENCODER, complete, "") == []


def test_a_model_may_have_no_side_columns():
    """The text of its columns says so."""
    assert describe_columns(SideEncoder()) == "none"
