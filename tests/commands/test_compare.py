"""Flows at one equal budget: the plan of their steps, the table of what is done, and the command around both."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.commands import compare as presets
from dualflow.commands.compare import bench_presets, chosen
from dualflow.commit import commit_json, commit_text, write_manifest
from dualflow.config import ModelConfig, parse_config
from dualflow.errors import ConfigError, DualflowError
from dualflow.evaluation.comparison_table import collect
from dualflow.report.comparison_text import markdown
from dualflow.training import budget as planning
from dualflow.training import step_time as timing
from dualflow.training.budget import budgeted, make_plan, read_plan, steps_within
from dualflow.training.checkpoint import load_card, save_model
from dualflow.training.step_time import step_seconds

TIMES = {"dualflow": 0.1, "dual_glow": 0.4, "wide": 0.2}


@pytest.fixture
def values(tmp_path):
    """A study of three flows, one of them a variation."""
    return {
        "study": {"name": "x", "results": str(tmp_path / "results"), "side": ["age"]},
        "preprocess": {"shape": [16, 16, 16]},
        "model": {"preset": "dualflow", "options": {"low_rank": 2}},
        "extra_models": {
            "dual_glow": {"preset": "dual_glow", "steps": 7},
            "wide": {"preset": "dualflow", "options": {"low_rank": 2, "hidden": [8, 8, 8]}},
        },
        "train": {"seeds": [0, 1], "precision": "float32"},
        "evaluate": {"bootstrap": 100},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": str(tmp_path / "artifacts")},
    }


@pytest.fixture
def config(values):
    return parse_config(values)


class Clock:
    """Stands in for the measurement of step times, and counts."""

    def __init__(self):
        self.asked = []

    def __call__(self, config, name, choice):
        self.asked.append(name)
        return TIMES[name]


def train_and_score(config, name, seed, steps, *, mae=0.1, pretrain=0, memory="900.5", **columns):
    """What the workflow leaves of one flow and seed, written by its own functions."""
    layout, stem, folder = config.layout, f"{name}_seed-{seed}", config.layout.model(name, seed)
    card = {"parameters": 1000, "train_seconds": 6.0 + seed, "mean_seconds": 2.0, "pretrain_steps": pretrain}
    card |= {"pretrain_seconds": 3.0} if pretrain else {}
    save_model(folder, {"w": torch.full((1,), float(len(name) + seed + steps))}, card)
    commit_text(folder / "history.tsv", f"step\tloss\n1.0\t0.5\n{steps - pretrain}.0\t0.1\n")
    scans = ["sub-1_ses-1", "sub-1_ses-2", "sub-2", "sub-3"]
    scores = pd.DataFrame({"model": name, "seed": seed, "scan": scans, "mae": mae, **columns})
    commit_text(layout.table(f"scans_{stem}"), scores.to_csv(sep="\t", index=False))
    commit_text(layout.benchmark(f"train/{stem}"), f"s\tmax_rss\n10.0\t{memory}\n")
    write_manifest(
        layout.manifest(f"evaluate/{stem}"),
        step="evaluate",
        outputs={"scans": layout.table(f"scans_{stem}")},
        inputs={"model": load_card(folder)["weights_sha256"]},
        config={},
    )


@pytest.mark.parametrize(
    ("seconds", "step", "steps"), [(150, 0.4, 375), (1, 0.3, 3), (0.1, 0.4, 1)], ids=["even", "rounded down", "one"]
)
def test_steps_are_those_that_fit_into_the_budget(seconds, step, steps):
    """Never more, but at least one."""
    assert steps_within(seconds, step) == steps


def test_a_plan_is_kept_and_taken_over(config):
    """The same command measures nothing again; another flow or budget adds only what is missing."""
    clock = Clock()
    first = make_plan(config, ["dualflow"], 10, clock)
    assert {name: entry.steps for name, entry in first.flows.items()} == {"dualflow": 100}
    assert read_plan(config) == first
    written = config.layout.bench_plan.stat().st_mtime_ns
    assert make_plan(config, ["dualflow"], 10, clock) == first
    assert config.layout.bench_plan.stat().st_mtime_ns == written
    more = make_plan(config, ["dual_glow"], 20, clock)
    assert {name: entry.steps for name, entry in more.flows.items()} == {"dualflow": 200, "dual_glow": 50}
    assert clock.asked == ["dualflow", "dual_glow"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"preset": "dualflow", "options": {"low_rank": 3}}},
        {"train": {"batch_size": 4}},
        {"preprocess": {"shape": [32, 16, 16]}},
    ],
    ids=["pieces", "batch", "grid"],
)
def test_a_flow_that_costs_something_else_is_timed_again(values, change):
    """Its old step time says nothing about it."""
    clock = Clock()
    make_plan(parse_config(values), ["dualflow"], 10, clock)
    make_plan(parse_config(values | change), ["dualflow"], 10, clock)
    assert clock.asked == ["dualflow", "dualflow"]


def test_step_times_of_two_machines_are_not_mixed(config, monkeypatch, capsys):
    """A whole plan of another machine is used and said to be of it; one with a gap is refused with the remedy."""
    clock = Clock()
    made = make_plan(config, ["dualflow"], 10, clock)
    monkeypatch.setattr(planning, "machine", lambda: {**made.machine, "processor": "another"})
    assert make_plan(config, ["dualflow"], 10, clock) == made
    assert "another machine" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="lacks wide; remove it"):
        make_plan(config, ["dualflow", "wide"], 10, clock)
    assert clock.asked == ["dualflow"]


def test_a_file_that_is_no_plan_is_refused(config):
    """With its path and the remedy."""
    commit_json(config.layout.bench_plan, {"seconds": -1})
    with pytest.raises(ConfigError, match=r"plan\.json: is not a plan of steps; remove it"):
        make_plan(config, ["dualflow"], 10, Clock())


def test_the_machine_has_no_name(monkeypatch):
    """Only what step times depend on is written down."""
    monkeypatch.setattr("platform.node", lambda: pytest.fail("the host name was asked for"))
    facts = timing.machine()
    assert {"processor", "cores", "torch"} <= set(facts)
    assert all(facts.values())


def test_the_workflow_is_given_the_planned_steps(config):
    """Chosen flows get the plan's steps in place of their own; others are no part of the workflow."""
    plan = make_plan(config, ["dualflow", "dual_glow"], 10, Clock())
    study = budgeted(config, plan, ["dual_glow"])
    assert {name: choice.steps for name, choice in study.flows.items()} == {"dualflow": None, "dual_glow": 25}
    both = budgeted(config, plan, ["dualflow", "dual_glow"])
    assert {name: choice.steps for name, choice in both.flows.items()} == {"dualflow": 100, "dual_glow": 25}
    assert both.model.options == config.model.options
    assert parse_config(both.model_dump(mode="json")) == both


def test_flows_are_chosen_by_name(config):
    """In the configuration's order; a wrong name is told what there is."""
    assert chosen(config, []) == ["dualflow", "dual_glow", "wide"]
    assert chosen(config, ["wide", "dualflow"]) == ["dualflow", "wide"]
    with pytest.raises(ConfigError, match="no flow named nope; choose from: dualflow, dual_glow, wide"):
        chosen(config, ["nope"])


@pytest.mark.parametrize("name", ["dualflow", "dual_glow"])
def test_a_step_is_timed_on_random_volumes(config, name, monkeypatch):
    """Flows with and without a closed-form mean take finite steps, and the time is that of one of them."""
    ticks = iter(np.cumsum([0.25 if odd else 4.0 for _ in range(1000) for odd in (False, True)]))
    monkeypatch.setattr(timing, "perf_counter", lambda: next(ticks))
    assert step_seconds(config, name, config.flows[name]) == pytest.approx(0.25)


def test_what_else_the_machine_does_is_not_counted(config, monkeypatch):
    """Of the rounds through the phases the quickest is taken phase by phase, and phases are averaged."""
    phases, each = len(timing.PHASES), timing.WARM + timing.TIMED
    quick = np.array([0.2, 0.4, 0.6, 0.8])
    slow = np.array([3.0, 0.0, 0.0, 0.0])  # other work, during the first phase of the first round
    rounds = [quick + slow, quick, *[quick + 1.0] * (timing.ROUNDS - 2)]
    assert timing.ROUNDS >= 2
    spent = np.repeat(np.concatenate(rounds), each)
    assert len(spent) == timing.ROUNDS * phases * each
    ticks = iter(np.cumsum([step for seconds in spent for step in (4.0, seconds)]))
    monkeypatch.setattr(timing, "perf_counter", lambda: next(ticks))
    assert step_seconds(config, "dualflow", config.model) == pytest.approx(0.5)
    assert next(ticks, None) is None


def test_pretraining_has_its_share_of_the_time(config, monkeypatch):
    """A quarter of the steps of SRFlow are those of its source."""
    of = {"SourcePretraining": 1.0, "DualFlow": 3.0}
    monkeypatch.setattr(timing, "_mean_step", lambda config, name, model, *_: of[type(model).__name__])
    choice = ModelConfig(preset="srflow", options={"steps": [1, 1, 1], "hidden": [8, 8, 8]})
    assert step_seconds(config, "srflow", choice) == pytest.approx(0.25 * 1.0 + 0.75 * 3.0)


def test_a_step_that_was_skipped_is_no_step(config, monkeypatch):
    """A loss that is not finite ends the step before the backward pass, so its time is refused."""
    monkeypatch.setattr(timing.Optimiser, "step", lambda self, loss: None)
    with pytest.raises(DualflowError, match="dualflow: a step on random volumes was not finite"):
        step_seconds(config, "dualflow", config.model)


def test_the_table_gathers_cost_and_scores(config):
    """Seeds are averaged, memory is their peak, visits of a person count once, and unknown columns are means."""
    plan = make_plan(config, ["dualflow"], 1, Clock())
    nll = {"nll_true": [1.0, 1.0, 1.0, 3.0], "nll_wrong": [2.0, 2.0, 2.0, 2.0], "bits_in_mask": [1.0, 3.0, 5.0, 7.0]}
    train_and_score(config, "dualflow", 0, 10, mae=0.1, memory="900.5", **nll)
    train_and_score(config, "dualflow", 1, 10, mae=0.3, memory="800.0", **nll)
    (row,) = collect(config, plan).to_dict("records")
    assert (row["model"], row["seeds"], row["people"], row["steps"], row["parameters"]) == ("dualflow", 2, 3, 10, 1000)
    assert row["mae"] == pytest.approx(0.2)
    assert row["train_seconds"] == pytest.approx(6.5)
    assert row["step_seconds"] == TIMES["dualflow"]
    assert row["mean_seconds"] == pytest.approx(2.0)
    assert row["memory_mib"] == pytest.approx(900.5)
    assert row["own_beats_other"] == pytest.approx(2 / 3)
    assert row["own_beats_other_low"] < 2 / 3 < row["own_beats_other_high"]
    assert row["bits_in_mask"] == pytest.approx((2 + 5 + 7) / 3)
    assert 2 <= row["bits_in_mask_low"] < row["bits_in_mask"] < row["bits_in_mask_high"] <= 7


def test_bad_values_of_the_stress_test_are_told(config):
    """The samples and the bad voxels of all seeds are added up; without a stress test there is no such column."""
    plan = make_plan(config, ["dualflow"], 1, Clock())
    for seed in (0, 1):
        train_and_score(config, "dualflow", seed, 10)
    assert "stress samples" not in markdown(collect(config, plan), config, plan)
    for seed in (0, 1):
        table = pd.DataFrame({"samples": [250, 250], "nonfinite_voxels": [0, 3 * seed]})
        commit_text(config.layout.stress("dualflow", seed), table.to_csv(sep="\t", index=False))
    (row,) = collect(config, plan).to_dict("records")
    assert (row["stress_samples"], row["stress_nonfinite"]) == (1000, 3)
    assert "voxels not finite" in markdown(collect(config, plan), config, plan)


def test_pretraining_counts_among_the_steps(config):
    """A flow whose source is trained first has done its plan with fewer steps of its own."""
    plan = make_plan(config, ["dualflow"], 1, Clock())
    train_and_score(config, "dualflow", 0, 10, pretrain=4)
    (row,) = collect(config, plan).to_dict("records")
    assert row["steps"] == 10
    assert (row["train_seconds"], row["pretrain_seconds"]) == (6.0, 3.0)
    assert markdown(collect(config, plan), config, plan).count("pretraining (s)") == 1


def test_the_table_holds_only_what_is_done_as_planned(config):
    """Left out: other steps, scores of other weights, no measurement of memory is n/a; a missing seed is counted."""
    plan = make_plan(config, list(TIMES), 1, Clock())
    assert collect(config, plan).empty
    train_and_score(config, "dualflow", 0, 10, memory="-")
    train_and_score(config, "dual_glow", 0, 300)
    train_and_score(config, "wide", 0, 5)
    save_model(config.layout.model("wide", 0), {"w": torch.zeros(1)}, {"parameters": 1})
    (row,) = collect(config, plan).to_dict("records")
    assert (row["model"], row["seeds"]) == ("dualflow", 1)
    assert np.isnan(row["memory_mib"])


def test_the_text_lines_up_and_drops_what_nobody_has(config):
    """Every line of a part is as wide, a column without any value is left out, a missing cell is n/a."""
    plan = make_plan(config, ["dualflow", "dual_glow"], 1, Clock())
    train_and_score(config, "dualflow", 0, 10, voxel_crps=0.05, nll_true=1.0, nll_blurred=2.0)
    train_and_score(config, "dual_glow", 0, 2)
    text = markdown(collect(config, plan), config, plan)
    parts = [part.splitlines() for part in text.strip().split("\n\n")[1:]]
    assert all(len({len(line) for line in part}) == 1 for part in parts)
    assert [part[0].split()[1] for part in parts] == ["flow"] * 4
    assert "0.1000 (0.1000 to 0.1000)" in parts[1][2]
    assert parts[2][3].split(" | ")[-1].strip(" |") == "n/a"
    assert "100 (44 to 100)" in parts[3][2]
    for absent in ("bits per voxel", "another's", "SSIM", "pretraining", "s/sample"):
        assert absent not in text


# of pandas, in MLflow's tables
@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes")
def test_a_partial_comparison_is_published_once(config, monkeypatch, capsys):
    """A failed flow costs the exit code and its row; the rest is printed, written and tracked, again only if new."""
    from mlflow import MlflowClient

    given = []

    def workflow(study, cores, options):
        given.append((cores, options))
        train_and_score(study, "dualflow", 0, study.model.steps)
        return 1

    monkeypatch.setattr(presets, "run_workflow", workflow)
    make_plan(config, list(TIMES), 1, Clock())
    for _ in range(2):
        assert bench_presets(config, seconds=1, names=["dualflow", "wide"], cores="3") == 1
    cores, (flag, *targets) = given[0]
    assert (cores, flag) == ("3", "--keep-going")
    assert targets == [
        str(config.layout.manifest(f"evaluate/{name}_seed-{seed}")) for name in ("dualflow", "wide") for seed in (0, 1)
    ]
    shown = capsys.readouterr()
    assert "| dualflow |" in shown.out
    assert "not, or not with every seed, done: dualflow, wide" in shown.err
    assert list(pd.read_csv(config.layout.table("presets"), sep="\t")["model"]) == ["dualflow"]
    assert config.layout.page("presets").read_text() in shown.out
    client = MlflowClient(config.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    assert run.info.run_name == "preset comparison"
    assert run.data.metrics["dualflow/mae"] == pytest.approx(0.1)
    assert run.data.params["plan.flows.dualflow.commands"] == "10"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"presets.json", "presets.md"}


@pytest.fixture
def invoke(tmp_path, monkeypatch, values):
    """Run a command in an empty folder that holds `tiny.yaml`."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return lambda *arguments: CliRunner().invoke(main, ["bench", "presets", *arguments])


def test_help_teaches(invoke):
    """Examples stand on lines of their own, and what is written where is named."""
    shown = invoke("--help")
    assert shown.exit_code == 0
    assert "\n  dualflow bench presets --presets dual_glow,dualflow\n" in shown.output
    for word in ("plan.json", "presets.tsv", "preset comparison", "configs/presets.yaml", "150"):
        assert word in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "nope"], "no flow named nope"),
        (["--set", "extra_models.x={preset: dualflow, options: {widths: 3}}", "--presets", "x"], "widths"),
    ],
    ids=["no such flow", "no such piece"],
)
def test_errors_are_one_line(invoke, arguments, message):
    """With exit code 2, before anything is measured."""
    done = invoke("--config", "tiny.yaml", *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("dualflow: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_budget_is_positive(invoke, tmp_path):
    """Refused as wrong usage, with nothing written."""
    assert invoke("--config", "tiny.yaml", "--seconds", "0").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
