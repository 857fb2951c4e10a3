"""`dualflow forecast`: the timed modes, the extrapolation to deep flows, and the advice."""

from __future__ import annotations

import pytest

from dualflow.config import parse_config
from dualflow.flows.memory import Memory
from dualflow.training import forecast

OPTIONS = {"levels": 2, "steps": [1, 1], "hidden": [4, 4], "low_rank": 2}


def config(*, train=None, options=OPTIONS, preset="dualflow", edge=16):
    """A tiny flow."""
    return parse_config(
        {
            "study": {"name": "tiny"},
            "cohort": {"subjects": 20},
            "preprocess": {"shape": [edge] * 3, "spacing_mm": 12.0},
            "model": {"preset": preset, "options": options},
            "train": train or {},
        }
    )


@pytest.fixture(scope="module", autouse=True)
def _each_footprint_once():
    """Sum the tensors of a configuration once, which takes seconds: tests differ in what this machine has."""
    sums, footprint = {}, forecast.footprint

    def remembered(config, scans):
        key = config.model_dump_json(), scans
        return sums[key] if key in sums else sums.setdefault(key, footprint(config, scans))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "footprint", remembered)
        yield


def test_the_table_has_every_mode_and_names_the_fastest_that_fits(capsys):
    """Memory, time and the largest batch of each memory mode."""
    frame = forecast.forecast_training(config())
    assert list(frame["mode"]) == list(Memory.__args__)
    assert (frame["seconds"] > 0).all()
    assert (frame["batch"] > 100).all()
    text = capsys.readouterr().out
    fastest = frame.loc[frame["seconds"].idxmin(), "mode"]
    assert f"Fastest mode that fits: train.memory: {fastest}" in text
    assert "12 training and 3 validation scans" in text


@pytest.mark.parametrize(("folds", "train"), [(None, 32), (4, 26), ("leave-one-out", 35)])
def test_scans_of_the_embedded_cohort_are_counted_before_its_index(tmp_path, folds, train):
    """As its folds or shares will divide them."""
    values = {"study": {"name": "x", "results": str(tmp_path)}, "cohort": {"subjects": 40}}
    split = {"validation": 0.1, "test": 0.1, **({} if folds is None else {"folds": folds})}
    assert forecast.scan_counts(parse_config(values | {"split": split})) == forecast.ScanCounts(train, 4)


def test_what_does_not_fit_is_not_timed(capsys):
    """Without a mode that fits, the command prints a remedy."""
    frame = forecast.forecast_training(config(), memory_gib=0.01)
    assert frame["seconds"].isna().all()
    assert (frame["batch"] == 0).all()
    assert "No memory mode fits into 0.0 GiB. Try a smaller train.batch_size" in capsys.readouterr().out


def test_modes_that_fit_the_limit_alone_are_not_timed(monkeypatch, capsys):
    """Another machine has that memory, this one does not."""
    monkeypatch.setattr(forecast, "_memory_of", lambda _: 1)
    frame = forecast.forecast_training(config(), memory_gib=100)
    assert frame["seconds"].isna().all()
    text = capsys.readouterr().out
    assert "so no step was timed" in text
    assert "Fastest" not in text


def test_a_deep_flow_is_timed_by_shallow_ones(monkeypatch):
    """Each flow step of a level adds its own time."""
    cost = {"levels": [0.5, 0.25]}

    def timed(_config, depth):
        step = 1.0 + sum(count * seconds for count, seconds in zip(depth, cost["levels"], strict=True))
        return step, 2 * step

    monkeypatch.setattr(forecast, "_time_steps", timed)
    options = {"levels": 2, "steps": [30, 40], "hidden": [4, 4]}
    step, validation = forecast.estimate_step_seconds(config(options=options, preset="dual_glow"))
    assert step == pytest.approx(1 + 15 + 10)
    assert validation == pytest.approx(2 * step)
