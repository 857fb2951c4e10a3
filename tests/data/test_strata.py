"""Strata of subjects."""

import numpy as np
import pandas as pd

from dualflow.data.strata import first_categorical, first_scans, strata_of, strata_table


def test_numbers_are_stratified_by_quartile():
    """Numbers with many values become four groups of equal size; few values and text stay unchanged."""
    subjects = [f"{number:02d}" for number in range(16)] + ["00"]
    frame = pd.DataFrame({
        "scan": [f"sub-{label}_ses-{number}" for number, label in enumerate(subjects)],
        "subject": subjects,
        "age": [*np.arange(16.0) ** 2, 999.0],
        "rare": [*[0.0] * 14, 1.0, np.nan, 0.0],
        "sex": [*["F", "M"] * 7, "F", None, "M"],
    })  # fmt: skip
    table = strata_table(frame, ["age", "rare", "sex"])
    assert table["age"].value_counts().tolist() == [4, 4, 4, 4]
    assert table["rare"].value_counts(dropna=False).tolist() == [14, 1, 1]
    assert table.loc["00", ["rare", "sex"]].tolist() == ["0", "F"]
    assert len(set(strata_of(table).values())) > 4
    assert first_categorical(frame, ["age", "sex"]) == ("sex",)
    assert first_categorical(frame, ["age"]) == ()


def test_long_numbers_are_different_levels():
    """Serial numbers of scanners and dates differ in their last digits."""
    frame = pd.DataFrame({"scan": [f"sub-{label}" for label in "abcdefgh"], "subject": [*"abcdefgh"]})
    frame["scanner"] = [1000041.0, 1000042.0] * 4
    frame["date"] = 20230100.0 + np.arange(8)
    table = strata_table(frame, ["scanner", "date"])
    assert table["scanner"].value_counts().to_dict() == {"1000041": 4, "1000042": 4}
    assert table["date"].value_counts().tolist() == [2, 2, 2, 2]


def test_the_first_visit_is_that_of_the_smallest_number():
    """The index sorts visits as text, by which M12 precedes M6."""
    scans = ["sub-1_ses-M12", "sub-1_ses-M6", "sub-10_ses-M6", "sub-2_ses-M0", "sub-2_ses-M100"]
    pairs = pd.DataFrame({"scan": scans, "subject": ["1", "1", "10", "2", "2"], "mmse": [20.0, 29.0, 27.0, 28.0, 15.0]})
    assert first_scans(pairs)["scan"].tolist() == ["sub-1_ses-M6", "sub-10_ses-M6", "sub-2_ses-M0"]
    assert strata_table(pairs, ["mmse"])["mmse"].to_dict() == {"1": "29", "10": "27", "2": "28"}
    assert first_scans(pairs[:0]).empty
