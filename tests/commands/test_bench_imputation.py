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
from dualflow.imputation.paired_models import METHODS
from dualflow.imputation.study_tables import ALL, JACKKNIFE, PROPER, SAMPLES

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
        bench_imputation(config, models=["stacked_mixture"], hidden=["random"], studies=3, people=20, draws=2, seed=0)


class StandIn:
    """A simulated study whose estimates are noise around 0, the same for all models but a little."""

    done: list[tuple[int, str, str]]
    most: int

    def __init__(self, way, seed):
        self.way, self.seed = way, seed

    @classmethod
    def make(cls, _pool, _members, _places, way, _draws, seed):
        return cls(way, seed)

    def estimates(self, _config, model, _folder):
        if len(self.done) == self.most:
            raise KeyboardInterrupt
        self.done.append((self.seed[1], self.way, model))
        rng, rows = np.random.default_rng(self.seed), []
        for method in (ALL, COMPLETE, JACKKNIFE, *METHODS[1:]):
            for term in ("age", NULL_TERM):
                value = rng.normal() + 0.1 * len(model) * (method == SAMPLES)
                rows.append((self.way, method, "r", term, value, 1.0, value - 2, value + 2))
        columns = ["hidden", "method", "region", "term", "estimate", "se", "low", "high"]
        return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    truth = pd.DataFrame({"region": "r", "term": ["age", NULL_TERM], "truth": 0.0})
    monkeypatch.setattr(module, "people_table", lambda _: PEOPLE[:6])
    monkeypatch.setattr(module, "draw_pool", lambda *_: None)
    monkeypatch.setattr(module, "_true_effects", lambda _: truth)
    monkeypatch.setattr(module, "SimulatedStudy", StandIn)
    config = parse_config({"study": {"name": "x", "results": str(tmp_path)}})

    def run(most=1000, **changes):
        StandIn.done, StandIn.most = [], most
        plan = {"models": ["m"], "hidden": ["random"], "studies": 3, "people": 4, "draws": 2, "seed": 0}
        bench_imputation(config, **plan | changes)
        return config.layout

    return run


def test_an_interrupted_benchmark_goes_on_with_the_next_study(bench, capsys):
    """Finished studies are not done again, except under another plan."""
    with pytest.raises(KeyboardInterrupt):
        bench(most=2)
    bench()
    assert StandIn.done == [(2, "random", "m")]
    assert "3 studies of 4 people, 2 draws, model m, 6 people in the cohort" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        bench(most=2, seed=1)
    assert [study for study, *_ in StandIn.done] == [0, 1]


def test_a_further_model_or_way_of_hiding_uses_the_finished_studies(bench, capsys):
    """The second model is compared with the first on the same studies."""
    bench()
    layout = bench(models=["m", "other"], hidden=["random", "diagnosis"])
    assert StandIn.done == [
        (study, way, model)
        for study in range(3)
        for way in ("random", "diagnosis")
        for model in ("m", "other")
        if (way, model) != ("random", "m")
    ]
    table = pd.read_csv(layout.table("imputation_other_against_m"), sep="\t").set_index(["hidden", "method"])
    assert table.loc[("random", SAMPLES), "difference"] == pytest.approx(0.4)
    assert table.loc[("random", PROPER), "difference"] == 0
    assert "other against m, regions, PET hidden random" in capsys.readouterr().out
    assert {path.name for path in layout.tables.glob("*.tsv")} >= {"imputation_m.tsv", "imputation_other_regions.tsv"}
