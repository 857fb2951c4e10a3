"""Plans at an equal budget: reuse, measurement and refusal of step times."""

import pytest
from comparison import FakeTimer, study_values

from dualflow.commit import commit_json
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.training import budget
from dualflow.training.budget import apply_plan, make_plan, read_plan, steps_within


@pytest.fixture
def values(tmp_path):
    return study_values(tmp_path)


@pytest.fixture
def config(values):
    return parse_config(values)


@pytest.mark.parametrize(
    ("seconds", "step", "steps"), [(150, 0.4, 375), (1, 0.3, 3), (0.1, 0.4, 1)], ids=["even", "rounded down", "one"]
)
def test_steps_fit_into_the_budget(seconds, step, steps):
    """The number of steps is rounded down, but is at least one."""
    assert steps_within(seconds, step) == steps


def test_a_plan_is_reused(config):
    """Repeating a command measures nothing; another flow or budget measures only missing step times."""
    timer = FakeTimer()
    first = make_plan(config, ["dualflow"], 10, timer)
    assert {name: entry.steps for name, entry in first.models.items()} == {"dualflow": 100}
    assert read_plan(config) == first
    written = config.layout.comparison_plan.stat().st_mtime_ns
    assert make_plan(config, ["dualflow"], 10, timer) == first
    assert config.layout.comparison_plan.stat().st_mtime_ns == written
    more = make_plan(config, ["dual_glow"], 20, timer)
    assert {name: entry.steps for name, entry in more.models.items()} == {"dualflow": 200, "dual_glow": 50}
    assert timer.measured == ["dualflow", "dual_glow"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"preset": "dualflow", "options": {"low_rank": 3}}},
        {"train": {"batch_size": 4}},
        {"preprocess": {"shape": [32, 16, 16]}},
        {"study": {"extra_sources": ["FLAIR"]}},
    ],
    ids=["pieces", "batch", "grid", "sources"],
)
def test_a_changed_flow_is_timed_again(values, change):
    """A change of pieces, batch size, grid or sources invalidates the step time."""
    timer = FakeTimer()
    make_plan(parse_config(values), ["dualflow"], 10, timer)
    changed = {section: values.get(section, {}) | part for section, part in change.items()}
    make_plan(parse_config(values | changed), ["dualflow"], 10, timer)
    assert timer.measured == ["dualflow", "dualflow"]


def test_step_times_of_two_machines_are_not_mixed(config, monkeypatch, capsys):
    """A complete plan of another machine is used with a notice; an incomplete one is refused with the remedy."""
    timer = FakeTimer()
    plan = make_plan(config, ["dualflow"], 10, timer)
    monkeypatch.setattr(budget, "machine", lambda: {**plan.machine, "processor": "another"})
    assert make_plan(config, ["dualflow"], 10, timer) == plan
    assert "another machine" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"another machine.*lack wide; remove the file"):
        make_plan(config, ["dualflow", "wide"], 10, timer)
    assert timer.measured == ["dualflow"]


@pytest.mark.parametrize("percent", [3.0, 60.0])
def test_a_busy_machine_is_a_warning(config, monkeypatch, capsys, percent):
    """Step times are measured all the same; a plan that measures nothing does not look at the machine."""
    monkeypatch.setattr(budget.psutil, "cpu_percent", lambda interval: percent)
    make_plan(config, ["dualflow"], 10, FakeTimer())
    error = capsys.readouterr().err
    assert ("other work takes 60 % of the processor" in error) == (percent > 10)
    make_plan(config, ["dualflow"], 10, FakeTimer())
    assert "other work" not in capsys.readouterr().err


def test_an_invalid_plan_is_refused(config):
    """The error names the file and the remedy."""
    commit_json(config.layout.comparison_plan, {"seconds": -1})
    with pytest.raises(ConfigError, match=r"plan\.json: is not a valid plan; remove it"):
        make_plan(config, ["dualflow"], 10, FakeTimer())


def test_the_plan_is_applied_to_the_configuration(config):
    """Selected flows take the plan's steps instead of their own; other extra models are dropped."""
    plan = make_plan(config, ["dualflow", "dual_glow"], 10, FakeTimer())
    study = apply_plan(config, plan, ["dual_glow"])
    assert {name: choice.steps for name, choice in study.flows.items()} == {"dualflow": None, "dual_glow": 25}
    both = apply_plan(config, plan, ["dualflow", "dual_glow"])
    assert {name: choice.steps for name, choice in both.flows.items()} == {"dualflow": 100, "dual_glow": 25}
    assert both.model.options == config.model.options
    assert parse_config(both.model_dump(mode="json")) == both
