"""The benchmark of imputation: how PET is hidden, how validity is summarised, and what the methods take as known."""

import numpy as np
import pandas as pd
import pytest

from dualflow.commands import bench_imputation as module
from dualflow.commands.bench_imputation import COMPLETE, HIDING, NULL, bench_imputation, summarise_validity
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.imaging.regions import from_labels
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


def estimates(method, error, se, studies=200, seed=0):
    """Estimates of one region and term with a standard error and the spread `error`."""
    values = 0.3 + np.random.default_rng(seed).normal(0, error, studies)
    return pd.DataFrame(
        {
            "study": range(studies), "hidden": "half", "method": method, "region": "r", "term": "age", "truth": 0.3,
            "estimate": values, "se": se, "low": values - 1.96 * se, "high": values + 1.96 * se,
        }
    )  # fmt: skip


def test_the_summary_tells_valid_from_overconfident_methods():
    table = pd.concat(
        [estimates(COMPLETE, 0.2, 0.2), estimates(PROPER, 0.15, 0.15, seed=1), estimates(SINGLE, 0.2, 0.1, seed=2)]
    )
    table["estimate"] = table["estimate"].where(table["method"] != SINGLE, table["estimate"] + 0.1)
    summary = summarise_validity(table).set_index("method")
    assert summary.loc[COMPLETE, "excluded"] == pytest.approx(5, abs=4)
    assert summary.loc[SINGLE, "excluded"] > 25
    assert summary.loc[PROPER, "width"] == pytest.approx(0.75)
    assert summary.loc[PROPER, "gain"] == pytest.approx(78, abs=35)
    assert summary.loc[SINGLE, "bias"] == pytest.approx(1.0, abs=0.35)
    assert summary.loc[PROPER, "bias"] < 0.2
    assert summary.loc[COMPLETE, "excluded_mc"] == pytest.approx(1.5, abs=0.8)


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


def test_the_true_law_imputes_targets_of_other_studies():
    """A person drawn twice gives two of the study's targets; neither is imputed, and no target twice in one scan."""
    means = [np.arange(10 * person, 10 * person + 8.0)[:, None] for person in range(3)]
    pool = module.Pool(PEOPLE[:3], [], [], means, from_labels(np.ones((1, 1, 1), int), {1: "r"}, (1.0,) * 3))
    drawn = pool.true_draws(np.array([2, 0, 2]), [1, 5, 2], 6, np.random.default_rng(0))[..., 0]
    assert drawn.shape == (6, 3)
    assert set(drawn[:, 1]) <= set(means[0][:, 0]) - {5.0}
    for column in (0, 2):
        assert set(drawn[:, column]) == {20.0, 23.0, 24.0, 25.0, 26.0, 27.0}


def test_only_the_embedded_cohort_has_a_known_truth(tmp_path):
    config = parse_config({"study": {"name": "x", "bids": str(tmp_path)}})
    with pytest.raises(ConfigError, match="has no known truth"):
        bench_imputation(config, studies=2, people=20, draws=2, model="stacked_mixture", seed=0)


def test_the_null_term_is_a_term_of_the_analysis():
    table = PEOPLE.assign(**{NULL: np.tile(["A", "B"], 500)})
    assert module._null_term() in module.FORMULA.design(table)
