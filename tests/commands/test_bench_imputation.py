"""The benchmark of imputation: how PET is hidden, how validity is summarised, and what the methods take as known."""

import numpy as np
import pandas as pd
import pytest

from dualflow.commands import bench_imputation as module
from dualflow.commands.bench_imputation import HIDING, NULL, bench_imputation
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.imputation.group_models import COMPLETE, analyse_regions
from dualflow.imputation.region_values import region_values
from dualflow.imputation.study_tables import ALL, FIXED, JACKKNIFE, PROPER, SINGLE, fillings
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


def test_only_the_embedded_cohort_has_a_known_truth(tmp_path):
    config = parse_config({"study": {"name": "x", "bids": str(tmp_path)}})
    with pytest.raises(ConfigError, match="has no known truth"):
        bench_imputation(config, studies=2, people=20, draws=2, model="stacked_mixture", seed=0)


def test_the_null_term_is_a_term_of_the_analysis():
    table = PEOPLE.assign(**{NULL: np.tile(["A", "B"], 500)})
    assert module._null_term() in module.FORMULA.design(table)


def test_an_interrupted_benchmark_goes_on_with_the_next_study(tmp_path, monkeypatch, capsys):
    """Finished studies are not done again, except under another plan."""
    done = []

    def study(_config, _pool, _members, _places, _model, _draws, seed):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(seed[1])
        rng, rows = np.random.default_rng(seed), []
        for method in (ALL, COMPLETE, JACKKNIFE):
            for term in ("age", module._null_term()):
                value = rng.normal()
                rows.append(("half", method, "r", term, value, 1.0, value - 2, value + 2))
        columns = ["hidden", "method", "region", "term", "estimate", "se", "low", "high"]
        return pd.DataFrame(rows, columns=columns)

    truth = pd.DataFrame({"region": "r", "term": ["age", module._null_term()], "truth": 0.0})
    monkeypatch.setattr(module, "people_table", lambda _: PEOPLE[:6])
    monkeypatch.setattr(module, "draw_pool", lambda *_: None)
    monkeypatch.setattr(module, "_true_effects", lambda _: truth)
    monkeypatch.setattr(module, "_study", study)
    config = parse_config({"study": {"name": "x", "results": str(tmp_path)}})
    plan = {"studies": 3, "people": 4, "draws": 2, "model": "m", "seed": 0}
    with pytest.raises(KeyboardInterrupt):
        bench_imputation(config, **plan)
    done.clear()
    bench_imputation(config, **plan)
    assert done == [2]
    assert "3 studies of 4 people, 2 draws, model m, 6 people in the cohort" in capsys.readouterr().out
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        bench_imputation(config, **plan | {"seed": 1})
    assert done == [0, 1]
