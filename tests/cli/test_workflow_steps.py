"""Steps of the workflow as commands: their locks, and the names of these."""

import fcntl
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dualflow.cli import main


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Return a function that runs a step in a folder with `tiny.yaml` only."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "1")  # the commands set them; monkeypatch restores them
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("study: {name: tiny}")
    return lambda step, *arguments: CliRunner().invoke(main, [step, "--config", "tiny.yaml", *arguments])


def is_locked(path):
    """Whether another open file holds the lock."""
    if not path.exists():
        return False
    with path.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize(
    ("step", "variables", "expected"),
    [
        ("train", {}, True),
        ("train", {"RANK": "1"}, True),
        ("train", {"RANK": "0", "WORLD_SIZE": "2"}, True),
        ("train", {"RANK": "1", "WORLD_SIZE": "2"}, False),
        ("evaluate", {"RANK": "1", "WORLD_SIZE": "2"}, True),
    ],
)
def test_only_further_processes_of_a_training_share_a_lock(invoke, monkeypatch, step, variables, expected):
    """A scheduler may set RANK for every job; two of them must not write the same files."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    states = []

    def command(config, names, seed):
        states.append(is_locked(config.layout.lock(f"{step}/{names[0]}_seed-{seed}")))

    monkeypatch.setattr(f"dualflow.commands.{step}.{step}", command)
    done = invoke(step, "--model", "unet")
    assert done.exit_code == 0, done.output
    assert states == [expected]


@pytest.mark.parametrize(
    ("step", "arguments", "expected"),
    [
        ("train", (), 3),
        ("train", ("--threads", "2"), 2),
        ("evaluate", (), 1),
    ],
)
def test_a_training_takes_the_threads_of_the_configuration(invoke, monkeypatch, step, arguments, expected):
    """It does without `--threads`, as when it is typed by hand or started on several machines; other steps take one."""
    counts = []
    monkeypatch.setattr("dualflow.cli.workflow_steps.set_threads", counts.append)
    monkeypatch.setattr(f"dualflow.commands.{step}.{step}", lambda config, names, seed: None)
    done = invoke(step, "--set", "train.threads=3", "--model", "unet", *arguments)
    assert done.exit_code == 0, done.output
    assert counts == [expected]


def test_the_configuration_is_read_before_numerical_libraries(tmp_path):
    """They take their threads from the environment when they are loaded."""
    (tmp_path / "tiny.yaml").write_text("study: {name: tiny, bids: .}\nextra_models: {other: {preset: c_glow}}")
    program = """
import sys
from dualflow.cli import workflow_steps
workflow_steps.set_threads = lambda count: sys.exit(str([name for name in ("numpy", "torch") if name in sys.modules]))
workflow_steps.WORKFLOW_STEPS["train"](["--config", "tiny.yaml"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--model", "unet", "--model", "../../../../evil"),
        ("evaluate", "--model", "../../../../evil"),
        ("impute", "--model", "../evil"),
        ("analyse", "--name", "../../../../evil"),
        ("analyse", "--name", "e vil", "--formula", "suvr ~ age"),
    ],
    ids=" ".join,
)
def test_a_name_that_leads_elsewhere_is_refused_before_any_lock(invoke, tmp_path, monkeypatch, arguments):
    """The lock of a step is named after it, and was made before the name was looked at."""
    monkeypatch.setattr("dualflow.commands.steps.INPUTS", {})  # as if the steps before were done
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert "cannot name a folder; use letters, digits, _ and - only" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
