"""A simulated study: how PET is hidden, and what the methods take as known."""

import numpy as np
import pandas as pd
import pytest

from dualflow.commands.simulated_study import FORMULA, HIDING, NULL, NULL_TERM
from dualflow.imputation.group_models import analyse_regions
from dualflow.imputation.region_values import region_values
from dualflow.imputation.study_tables import FIXED, PROPER, SINGLE, fillings
from tests.support.imputed_study import ImputedStudy

PEOPLE = pd.DataFrame(
    {
        "diagnosis": np.repeat(["CN", "AD"], 500),
        "age": np.random.default_rng(0).normal(70, 8, 1000),
        "sex": ["F", "M"] * 500,
    }
)


def test_half_is_hidden_at_random():
    hidden = HIDING["half at random"](PEOPLE, np.random.default_rng(0))
    assert hidden.sum() == 500
    assert 0.4 < hidden[:500].mean() < 0.6


def test_more_of_the_patients_and_of_the_old_are_hidden():
    hidden = HIDING["by diagnosis and age"](PEOPLE, np.random.default_rng(0))
    assert hidden[:500].mean() == pytest.approx(0.26, abs=0.06)
    assert hidden[500:].mean() == pytest.approx(0.5, abs=0.06)
    assert PEOPLE["age"][hidden].mean() > PEOPLE["age"][~hidden].mean() + 1


def test_the_methods_differ_in_what_they_take_as_known():
    """On one study: proper draws vary most, and single imputation not at all."""
    study = ImputedStudy.make(40)
    items = [item for dataset in study.splits.values() for item in dataset.items]
    values = [region_values(study.model, item, study.regions, 30, index) for index, item in enumerate(items)]
    observed = np.array(["target" in item for item in items])
    terms = pd.DataFrame({"Intercept": 1.0, "age": [float(item["side"][0]) for item in items]})
    filled = fillings(values, observed, terms, 0)
    spread = {name: draws.std(axis=0).mean() for name, draws in filled.items()}
    assert spread[SINGLE] == 0
    assert spread[PROPER] > spread[FIXED] > 0
    measured = np.stack([one.measured for one in values])
    tables = np.repeat(measured[None], 30, axis=0)
    tables[:, ~observed] = filled[PROPER]
    table = analyse_regions(tables, observed, terms, [str(index) for index in range(40)], study.regions.names)
    assert (table.loc[table["method"] == "multiple", "fmi"] > 0).all()


def test_the_null_term_is_a_term_of_the_analysis():
    table = PEOPLE.assign(**{NULL: np.tile(["A", "B"], 500)})
    assert NULL_TERM in FORMULA.design(table)
