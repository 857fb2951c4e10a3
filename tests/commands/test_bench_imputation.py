"""The benchmark of imputation over simulated studies."""

import numpy as np
import pandas as pd
import pytest

from dualflow.commands import bench_imputation as module
from dualflow.commands.bench_imputation import bench_imputation
from dualflow.commands.simulated_study import NULL_TERM
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.imputation.group_models import COMPLETE
from dualflow.imputation.study_tables import ALL, JACKKNIFE

PEOPLE = pd.DataFrame(
    {
        "diagnosis": np.repeat(["CN", "AD"], 500),
        "age": np.random.default_rng(0).normal(70, 8, 1000),
        "sex": ["F", "M"] * 500,
    }
)


def test_only_the_embedded_cohort_has_a_known_truth(tmp_path):
    config = parse_config({"study": {"name": "x", "bids": str(tmp_path)}})
    with pytest.raises(ConfigError, match="has no known truth"):
        bench_imputation(config, studies=2, people=20, draws=2, model="stacked_mixture", seed=0)


def test_an_interrupted_benchmark_goes_on_with_the_next_study(tmp_path, monkeypatch, capsys):
    """Finished studies are not done again, except under another plan."""
    done = []

    def study(_config, _pool, _members, _places, _model, _draws, seed):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(seed[1])
        rng, rows = np.random.default_rng(seed), []
        for method in (ALL, COMPLETE, JACKKNIFE):
            for term in ("age", NULL_TERM):
                value = rng.normal()
                rows.append(("half", method, "r", term, value, 1.0, value - 2, value + 2))
        columns = ["hidden", "method", "region", "term", "estimate", "se", "low", "high"]
        return pd.DataFrame(rows, columns=columns)

    truth = pd.DataFrame({"region": "r", "term": ["age", NULL_TERM], "truth": 0.0})
    monkeypatch.setattr(module, "people_table", lambda _: PEOPLE[:6])
    monkeypatch.setattr(module, "draw_pool", lambda *_: None)
    monkeypatch.setattr(module, "_true_effects", lambda _: truth)
    monkeypatch.setattr(module, "study_estimates", study)
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
