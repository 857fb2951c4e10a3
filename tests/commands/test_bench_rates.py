"""The benchmark of learning rates: real trainings of a small network, their table, and what is not repeated."""

import pandas as pd
import pytest
from learning_phantoms import learning_data

from dualflow.commands import bench_rates as module
from dualflow.commands.bench_rates import bench_rates, rates_markdown, summarise_rates, with_rate
from dualflow.commands.learning_data import LearningData
from dualflow.config import parse_config
from dualflow.config.learning import BaselineTraining
from dualflow.data.dataset import PairDataset
from dualflow.data.tsv import read_typed_table
from dualflow.errors import ConfigError, DataError


@pytest.fixture
def config(tmp_path, phantoms, held_out, card, monkeypatch):
    """A study of phantoms."""
    data = learning_data(card, phantoms, held_out)
    monkeypatch.setattr(LearningData, "load", classmethod(lambda cls, config: data))
    return parse_config({
        "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
        "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
        "train": {"validate_every": 5, "precision": "float32"},
        "baselines": {"models": ["mean_image", "unet"], "steps": 10, "training": {"unet": {"width": 6}}},
    })  # fmt: skip


def test_rates_are_compared_once(config, capsys, monkeypatch):
    """Each rate has its score, the least one is the best, and a second run trains nothing."""
    bench_rates(config, [], [1e-2, 1e-5])
    table = read_typed_table(config.layout.table("rates"))
    assert table["rate"].tolist() == [1e-5, 1e-2]
    assert table["score"].nunique() == 2
    assert table.loc[table["best"], "score"].tolist() == [table["score"].min()]
    assert config.layout.page("rates").read_text() in capsys.readouterr().out
    assert not list((config.layout.root / "benchmarks").rglob("state-*"))
    monkeypatch.setattr(module, "fit_model", None)
    bench_rates(config, ["unet"], [1e-5, 1e-2])
    pd.testing.assert_frame_equal(read_typed_table(config.layout.table("rates")), table)


def test_a_rate_that_diverges_has_no_score(config, capsys):
    """The reason is printed, and the other rates are tried."""
    bench_rates(config.with_fields("train", max_skipped=0), [], [1e-3, 1e30])
    table = read_typed_table(config.layout.table("rates"))
    assert table["best"].tolist() == [True, False]
    output = capsys.readouterr()
    assert "diverged" in output.out
    assert "warning: unet, rate 1e+30, seed 0: " in output.err


def test_an_error_of_the_configuration_is_no_result(config):
    """It ends the benchmark, and nothing is recorded."""
    training = {"unet": BaselineTraining(width=7)}
    odd = config.with_fields("baselines", training=training)
    with pytest.raises(ConfigError, match=r"unet\.width = 7"):
        bench_rates(odd, [], [1e-3])
    assert not list(config.layout.manifest("bench/any").parent.rglob("*.json"))


def test_a_rate_is_that_of_one_model(config):
    """A flow's is the study's; a network keeps its other settings."""
    assert with_rate(config, "dualflow", 0.5).train.learning_rate == 0.5
    changed = with_rate(config, "unet", 0.5).baselines
    assert (changed.of("unet").learning_rate, changed.of("unet").width) == (0.5, 6)
    assert changed.of("cvae") == config.baselines.of("cvae")


def test_only_gradient_steps_have_a_rate(config):
    """A closed form is refused, and so is a study without networks."""
    with pytest.raises(ConfigError, match="rates of stacked; expected models with gradient steps, choose from: dualfl"):
        bench_rates(config, ["unet", "stacked"], [1e-3])
    closed = config.with_fields("baselines", models=("mean_image",))
    with pytest.raises(ConfigError, match="rates of no model"):
        bench_rates(closed, [], [1e-3])


def test_rates_need_validation_people(config, monkeypatch):
    data = LearningData.load(config)
    empty = LearningData(data.pairs, data.encoder, data.training, PairDataset([]), data.digests)
    monkeypatch.setattr(LearningData, "load", classmethod(lambda cls, config: empty))
    with pytest.raises(DataError, match="no validation people"):
        bench_rates(config, [], [1e-3])


def test_people_with_several_visits_count_once(config, held_out, monkeypatch, capsys):
    """Three validation scans of two people are those of two people."""
    data = LearningData.load(config)
    visits = PairDataset([*held_out.items, {**held_out.items[0], "scan": f"{held_out.scans[0]}_ses-2"}])
    more = LearningData(data.pairs, data.encoder, data.training, visits, data.digests)
    monkeypatch.setattr(LearningData, "load", classmethod(lambda cls, config: more))
    monkeypatch.setattr(module, "_score", lambda *_: {"score": 1.0, "best_step": 0.0})
    bench_rates(config, [], [1e-3])
    assert "\n2 validation people, seeds 0; lower is better" in capsys.readouterr().out


def test_the_table_says_what_to_do():
    """Scores are means over seeds; the best rate at the edge asks for more, and equal scores decide nothing."""
    names = ["unet", "unet", "unet", "unet", "cvae", "cvae", "pix2pix", "pix2pix"]
    rates = [1e-3, 1e-3, 1e-2, 1e-2, 1e-3, 1e-2, 1e-3, 1e-2]
    scores = [1.0, 3.0, 1.0, 1.0, 4.0, 4.0, float("inf"), float("inf")]
    rows = pd.DataFrame({"model": names, "rate": rates, "score": scores, "best_step": 0.0})
    table = summarise_rates(rows)
    assert table["model"].tolist() == ["unet", "unet", "cvae", "cvae", "pix2pix", "pix2pix"]
    assert table["score"].tolist()[:2] == [2.0, 1.0]
    lines = rates_markdown(table).splitlines()
    assert "0.01 (edge: try further ones)" in lines[2]
    assert "no difference" in lines[3]
    assert lines[4].count("diverged") == 2
    assert "n/a" in lines[4]
