"""`dualflow compare`: selection of flows, published results and errors."""

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from comparison import TIMES, FakeTimer, study_values, train_and_score

from dualflow.cli import main
from dualflow.commands import compare as module
from dualflow.commands.compare import compare, select_flows
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.training.budget import make_plan


@pytest.fixture
def values(tmp_path):
    return study_values(tmp_path)


@pytest.fixture
def config(values):
    return parse_config(values)


def test_flows_are_selected_by_name(config):
    """Flows keep the configuration's order; an unknown name is refused with the choices."""
    assert select_flows(config, []) == ["dualflow", "dual_glow", "wide"]
    assert select_flows(config, ["wide", "dualflow"]) == ["dualflow", "wide"]
    with pytest.raises(ConfigError, match="no flow named nope; choose from: dualflow, dual_glow, wide"):
        select_flows(config, ["nope"])


# a pandas warning in MLflow's tables
@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes")
def test_a_partial_comparison_is_published_once(config, monkeypatch, capsys):
    """A failed flow loses its row and sets the exit code; the rest is printed, written, and tracked once."""
    from mlflow import MlflowClient

    calls = []

    def workflow(study, cores, options, steps):
        calls.append((cores, options, steps))
        train_and_score(study, "dualflow", 0, study.model.steps)
        return 1

    monkeypatch.setattr(module, "run_workflow", workflow)
    make_plan(config, list(TIMES), 1, FakeTimer())
    for _ in range(2):
        assert compare(config, seconds=1, names=["dualflow", "wide"], cores="3") == 1
    cores, options, steps = calls[0]
    assert (cores, options) == ("3", ["--keep-going"])
    assert [step for step in steps if step.startswith(("evaluate", "convert", "report"))] == [
        f"evaluate/{name}_seed-{seed}" for name in ("dualflow", "wide") for seed in (0, 1)
    ]
    shown = capsys.readouterr()
    assert "| dualflow |" in shown.out
    assert "incomplete (a seed failed or is missing): dualflow, wide" in shown.err
    assert list(pd.read_csv(config.layout.table("comparison"), sep="\t")["model"]) == ["dualflow"]
    assert config.layout.page("comparison").read_text() in shown.out
    client = MlflowClient(config.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    assert run.info.run_name == "comparison"
    assert run.data.metrics["dualflow/mae"] == pytest.approx(0.1)
    assert run.data.params["plan.flows.dualflow.steps"] == "10"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"comparison.json", "comparison.md"}


@pytest.fixture
def invoke(tmp_path, monkeypatch, values):
    """Return a function that runs the command in a folder with `tiny.yaml` only."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return lambda *arguments: CliRunner().invoke(main, ["compare", *arguments])


def test_help_has_examples(invoke):
    """The help keeps one example per line and names every file that the command reads or writes."""
    shown = invoke("--help")
    assert shown.exit_code == 0
    assert "\n  dualflow compare --presets dual_glow,dualflow\n" in shown.output
    for word in (
        "compare/plan.json",
        "comparison.tsv",
        "comparison.md",
        "run 'comparison'",
        "configs/presets.yaml",
        "150",
    ):
        assert word in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "nope"], "no flow named nope"),
        (["--set", "extra_models.x={preset: dualflow, options: {widths: 3}}", "--presets", "x"], "widths"),
    ],
    ids=["no such flow", "no such option"],
)
def test_errors_are_one_line(invoke, arguments, message):
    """An unknown flow or option ends with exit code 2 before any measurement."""
    done = invoke("--config", "tiny.yaml", *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("dualflow: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_budget_is_positive(invoke, tmp_path):
    """A budget of zero is a usage error, and no file is written."""
    assert invoke("--config", "tiny.yaml", "--seconds", "0").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
