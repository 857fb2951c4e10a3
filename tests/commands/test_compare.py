"""`dualflow compare`: selection of models, folds, published results and errors."""

import re

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from comparison import TIMES, FakeTimer, study_values, train_and_score

from dualflow.cli import main
from dualflow.commands import compare as module
from dualflow.commands.compare import compare, select_models
from dualflow.commands.run_lock import LOCK, RUN
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.lifetime import try_lock
from dualflow.training.budget import make_plan


@pytest.fixture
def values(tmp_path, monkeypatch):
    """Values of a configuration, in a working folder of its own, where the lock of runs lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN, raising=False)
    return study_values(tmp_path)


@pytest.fixture
def config(values):
    return parse_config(values)


def test_models_are_selected_by_name(config):
    """Models keep the configuration's order; an unknown name is refused with the choices."""
    assert select_models(config, []) == ["dualflow", "dual_glow", "wide", "mean_image", "unet"]
    assert select_models(config, ["unet", "dualflow"]) == ["dualflow", "unet"]
    with pytest.raises(
        ConfigError, match="no model named nope; choose from: dualflow, dual_glow, wide, mean_image, un"
    ):
        select_models(config, ["nope"])


def test_a_partial_comparison_is_published_once(config, monkeypatch, capsys):
    """A failed flow loses its row and sets the exit code; the rest is printed, written, and tracked once."""
    from mlflow import MlflowClient

    calls, roots = [], set()

    def workflow(study, cores, options, steps):
        calls.append((cores, options, steps))
        roots.add(study.layout.root)
        train_and_score(study, "dualflow", 0, study.model.steps)
        return 1

    monkeypatch.setattr(module, "run_workflow", workflow)
    make_plan(config, list(TIMES), 1, FakeTimer())
    for _ in range(2):
        assert compare(config, seconds=1, names=["dualflow", "wide"], cores="3") == 1
    assert roots == {config.layout.root / "compare/split/x"}  # models that the study trained before stay
    cores, options, steps = calls[0]
    assert (cores, options) == ("3", ["--keep-going"])
    assert [step for step in steps if step.startswith(("evaluate", "convert", "report"))] == [
        *(f"evaluate/{name}_seed-{seed}" for name in ("dualflow", "wide") for seed in (0, 1)),
        "evaluate/ceilings",
    ]
    shown = capsys.readouterr()
    assert "| dualflow |" in shown.out
    assert "incomplete (a training failed or is missing): dualflow, wide" in shown.err
    assert list(pd.read_csv(config.layout.table("comparison"), sep="\t")["model"]) == ["dualflow"]
    assert config.layout.page("comparison").read_text() in shown.out
    client = MlflowClient(config.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    assert (run.info.run_name, run.info.status) == ("comparison", "FINISHED")
    assert run.data.metrics["mae_SUVR/dualflow"] == pytest.approx(0.1)
    description, page = run.data.tags["mlflow.note.content"], config.layout.page("comparison").read_text()
    picture = (
        f"![Scores of all models; blue: dualflow](get-artifact?path=figures/comparison.png&run_uuid={run.info.run_id})"
    )
    assert description.startswith(f"{picture}\n\n{page.split('|')[0]}")
    assert "by `dualflow compare --seconds 1 dualflow wide`" in description
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == ["figures/comparison.png"]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "comparison.md", "config.yaml", "figures", "metrics", "plan.json",
    }  # fmt: skip


def test_a_model_that_is_removed_loses_its_scores_on_the_page(config, monkeypatch):
    """The run of the comparison is continued, and had the scores of all models that it ever compared."""
    from mlflow import MlflowClient

    def workflow(study, cores, options, steps):
        for name, seed in study.trainings:
            train_and_score(study, name, seed, study.model.steps if name == "dualflow" else 0)
        return 0

    monkeypatch.setattr(module, "run_workflow", workflow)
    make_plan(config, list(TIMES), 1, FakeTimer())
    for baselines in (("mean_image",), ()):
        compare(config.with_fields("baselines", models=baselines), seconds=1, names=["dualflow", *baselines])
    client = MlflowClient(config.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    metrics = {key: run.data.metrics[f"mae_SUVR/{key}"] for key in ("dualflow", "mean_image")}
    assert metrics == {"dualflow": pytest.approx(0.1), "mean_image": pytest.approx(float("nan"), nan_ok=True)}


def test_each_person_is_tested_once_over_the_folds(config, monkeypatch, capsys):
    """Each fold is a study of its own with the shared scans; one table holds the people of all folds."""
    studies, shared = [], []

    def workflow(study, cores, options, steps):
        fold = len(studies)
        studies.append(study)
        for name, seed in study.trainings:
            steps = {"unet": study.baselines.of(name).steps, "dualflow": study.model.steps}.get(name, 0)
            people = [f"sub-{4 * fold + index}" for index in range(4)]
            error = 0.1 if name == "unet" else 0.2
            mae = [error + 0.01 * index for index in range(4)]
            train_and_score(study, name, seed, steps, mae=mae, scans=people)
        return 0

    monkeypatch.setattr(module, "run_workflow", workflow)
    monkeypatch.setattr(module, "share_scans", lambda source, destination: shared.append((source, destination)))
    make_plan(config, list(TIMES), 1, FakeTimer())
    settings = ["--config", "presets", "--set", "train.seeds=[0, 1]"]
    assert compare(config, seconds=1, names=["dualflow", "mean_image", "unet"], folds=3, settings=settings) == 0
    roots = [study.layout.root for study in studies]
    assert [root.relative_to(config.layout.root).parts for root in roots] == [
        ("compare", "folds-3", f"fold-{fold}", "x") for fold in range(3)
    ]
    assert [(source.root, destination.root) for source, destination in shared] == [
        (config.layout.root, roots[0]), (roots[0], roots[1]), (roots[0], roots[2]),
    ]  # fmt: skip
    assert [(study.split.folds, study.split.fold) for study in studies] == [(3, 0), (3, 1), (3, 2)]
    assert {study.baselines.of("unet").steps for study in studies} == {20}
    table = pd.read_csv(config.layout.table("comparison"), sep="\t").set_index("model")
    assert table.loc["unet", ["seeds", "folds", "trainings", "people"]].tolist() == [2, 3, 6, 12]
    assert table.loc["mean_image", ["seeds", "folds", "trainings", "people"]].tolist() == [1, 3, 3, 12]
    assert table.loc["unet", "mae_low"] < table.loc["unet", "mae"] < table.loc["unet", "mae_high"]
    shown = capsys.readouterr()
    assert "incomplete" not in shown.err
    assert "3 folds, each person tested once per seed; 12 held-out simulated people" in shown.out
    assert re.search(r"\| mean_image +\| +equal by construction +\|", shown.out)
    assert "-0.1000 (-0.1000 to -0.1000), p < 0.001" in shown.out
    command = "dualflow compare --config presets --set 'train.seeds=[0, 1]' --seconds 1 --folds 3"
    assert f"by `{command} dualflow mean_image unet`" in shown.out
    scores = pd.read_csv(config.layout.table("comparison_scores"), sep="\t")
    assert not scores.duplicated(["model", "seed", "scan"]).any()


def test_steps_are_timed_while_no_run_is_active(config, monkeypatch):
    """Its steps would slow them. The trainings are runs of their own, so the lock is free for them."""
    states = []

    def is_free():
        LOCK.parent.mkdir(exist_ok=True)
        with LOCK.open("a+") as stream:
            return try_lock(stream)

    def timed(*arguments):
        states.append(("timed", is_free()))
        return make_plan(*arguments, FakeTimer())

    monkeypatch.setattr(module, "make_plan", timed)
    monkeypatch.setattr(module, "run_workflow", lambda *_: states.append(("run", is_free())) or 1)
    assert compare(config, seconds=1, names=["dualflow"]) == 1
    assert states == [("timed", False), ("run", True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_subjects": ["1"]}, "test_subjects and validation_subjects exclude folds"),
        ({"folds": "leave-one-out"}, "expected a number of folds to compare over; name it with --folds"),
    ],
    ids=["named people", "leave-one-out"],
)
def test_folds_need_a_split_that_is_drawn(values, change, message):
    """The error comes before any work."""
    config = parse_config(values | {"split": change})
    with pytest.raises(ConfigError, match=message):
        compare(config, seconds=1, folds=None if "folds" in change else 3)


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
    assert "\n  dualflow compare dualflow dual_glow unet\n" in shown.output
    for word in (
        "compare/plan.json",
        "comparison.tsv",
        "comparison.md",
        "'comparison'",
        "comparison_differences.tsv",
        "comparison_scores.tsv",
        "configs/compare.yaml",
        "60",
    ):
        assert word in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no model named nope"),
        (["--set", "extra_models.x={preset: dualflow, options: {widths: 3}}", "x"], "widths"),
    ],
    ids=["no such model", "no such option"],
)
def test_errors_are_one_line(invoke, arguments, message):
    """An unknown model or option ends with exit code 2 before any measurement."""
    done = invoke("--config", "tiny.yaml", *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("dualflow: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_budget_is_positive(invoke, tmp_path):
    """A budget of zero is a usage error, and no file is written."""
    assert invoke("--config", "tiny.yaml", "--seconds", "0").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
