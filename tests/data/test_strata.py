"""Strata of subjects."""

import numpy as np
import pandas as pd

from dualflow.data.strata import first_categorical, strata_of, strata_table


def test_numbers_are_stratified_by_quartile():
    """Numbers with many values become four groups of equal size; few values and text stay unchanged."""
    frame = pd.DataFrame({
        "subject": [f"{number:02d}" for number in range(16)] + ["00"],
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
