"""Which studies are completed, and which are refused."""

import numpy as np
import pandas as pd
import pytest

from dualflow.errors import DataError
from dualflow.imputation.completion import StudyRegions, complete
from dualflow.imputation.formula import Formula
from dualflow.imputation.region_values import RegionValues

TERMS = Formula("group + age", {"group": "control"})
REGIONS, DRAWS = 3, 5


def study(people: int, sessions: int, measured: int, patients: int) -> tuple[StudyRegions, pd.DataFrame]:
    """People with equal numbers of sessions, of whom the first are measured, and the first of these are patients."""
    rng = np.random.default_rng(0)
    result, rows = StudyRegions(), []
    for person in range(people):
        for session in range(sessions):
            prediction = rng.normal(1, 0.1, REGIONS)
            known = person < measured
            values = prediction + rng.normal(0, 0.05, REGIONS) if known else np.full(REGIONS, np.nan)
            result.keys.append(f"sub-{person:02d}_ses-{session}")
            result.values.append(RegionValues(values, prediction, rng.normal(0, 0.05, (DRAWS, REGIONS))))
            result.cross_fitted.append(True)
            result.weights.append(np.zeros((0, REGIONS)))
            is_patient = person < patients or (not known and person % 2 == 0)
            rows.append({"group": "patient" if is_patient else "control", "age": 60.0 + person + 0.5 * session})
    return result, pd.DataFrame(rows)


def test_measured_values_stay_and_the_others_are_drawn():
    """With a jackknife, also of several sessions."""
    scans, table = study(people=24, sessions=2, measured=12, patients=6)
    completed = complete(scans, TERMS, table, DRAWS, seed=0)
    assert completed.replicates is not None
    assert np.isfinite(completed.values).all()
    drawn = completed.values.std(axis=0) > 0
    assert (drawn.all(axis=1) == ~scans.observed).all()


def test_sessions_of_few_people_do_not_count_as_people():
    """Sixteen scans of two people tell nothing of how people differ."""
    scans, table = study(people=12, sessions=8, measured=2, patients=1)
    with pytest.raises(
        DataError, match="16 measured scans are of 2 subjects, expected at least 8 subjects for 3 terms"
    ):
        complete(scans, TERMS, table, DRAWS, seed=0)


def test_without_a_jackknife_sessions_are_refused():
    """One measured patient: with a session each Rubin's rules remain, with two they would be too narrow."""
    scans, table = study(people=24, sessions=1, measured=12, patients=1)
    assert complete(scans, TERMS, table, DRAWS, seed=0).replicates is None
    scans, table = study(people=24, sessions=2, measured=12, patients=1)
    with pytest.raises(DataError, match="24 scans are further sessions, and a term of the imputation depends"):
        complete(scans, TERMS, table, DRAWS, seed=0)
