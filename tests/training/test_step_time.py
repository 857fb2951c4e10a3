"""Time of one optimiser step, measured on random volumes."""

import numpy as np
import pytest
from comparison import study_values

from dualflow.config import ModelConfig, parse_config
from dualflow.errors import DualflowError
from dualflow.training import step_time
from dualflow.training.step_time import step_seconds


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A study whose steps are timed three times each."""
    monkeypatch.setattr(step_time, "TIMED", 2)
    return parse_config(study_values(tmp_path))


def test_the_host_name_is_not_recorded(monkeypatch):
    """The machine's description holds only what step times depend on."""
    monkeypatch.setattr("platform.node", lambda: pytest.fail("the host name was asked for"))
    facts = step_time.machine()
    assert {"processor", "cores", "torch"} <= set(facts)
    assert all(facts.values())


@pytest.mark.parametrize("name", ["dualflow", "dual_glow", "unet", "unet_heteroscedastic"])
def test_a_step_is_timed_on_random_volumes(config, name, monkeypatch):
    """Flows and networks with and without a closed-form mean take finite steps; the time is that of one step."""
    ticks = iter(np.cumsum([0.25 if odd else 4.0 for _ in range(1000) for odd in (False, True)]))
    monkeypatch.setattr(step_time, "perf_counter", lambda: next(ticks))
    assert step_seconds(config, name) == pytest.approx(0.25)


def test_other_load_of_the_machine_is_excluded(config, monkeypatch):
    """Each phase takes its fastest round; phases are averaged."""
    phases, each = len(step_time.PHASES), step_time.WARM + step_time.TIMED
    quick = np.array([0.2, 0.4, 0.6, 0.8])
    slow = np.array([3.0, 0.0, 0.0, 0.0])  # other work, during the first phase of the first round
    rounds = [quick + slow, quick, *[quick + 1.0] * (step_time.ROUNDS - 2)]
    assert step_time.ROUNDS >= 2
    spent = np.repeat(np.concatenate(rounds), each)
    assert len(spent) == step_time.ROUNDS * phases * each
    ticks = iter(np.cumsum([step for seconds in spent for step in (4.0, seconds)]))
    monkeypatch.setattr(step_time, "perf_counter", lambda: next(ticks))
    assert step_seconds(config, "dualflow") == pytest.approx(0.5)
    assert next(ticks, None) is None


def test_pretraining_is_weighted_by_its_share_of_the_steps(config, monkeypatch):
    """A quarter of the steps of SRFlow are those of its source."""
    seconds = {"SourceObjective": 1.0, "FlowObjective": 3.0}
    monkeypatch.setattr(step_time, "_mean_step", lambda config, name, model, *_: seconds[type(model).__name__])
    choice = ModelConfig(preset="srflow", options={"steps": [1, 1, 1], "hidden": [8, 8, 8]})
    study = config.model_copy(update={"extra_models": {"srflow": choice}})
    assert step_seconds(study, "srflow") == pytest.approx(0.25 * 1.0 + 0.75 * 3.0)


def test_pretraining_under_a_spread_that_follows_the_source_is_timed(config):
    """The source's step takes the same batch as the flow's."""
    options = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "mean": "local_linear", "spread": "source"}
    choice = ModelConfig(preset="srflow", options={**options, "prediction": "mean"})
    assert step_seconds(config.model_copy(update={"extra_models": {"srflow": choice}}), "srflow") > 0


def test_a_skipped_step_is_refused(config, monkeypatch):
    """A non-finite loss ends the step before the backward pass, so its time is invalid."""
    monkeypatch.setattr(step_time.Optimiser, "step", lambda self, loss: None)
    with pytest.raises(DualflowError, match="dualflow: a step on random volumes was not finite"):
        step_seconds(config, "dualflow")
