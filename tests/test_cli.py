"""The command line: what it offers, and errors as one line with an exit code."""

import os
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from dualflow import __version__
from dualflow.cli import STEPS, main
from dualflow.errors import ConfigError
from dualflow.flows.presets import PRESETS


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run a command in an empty folder that holds `tiny.yaml`."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "1")  # the commands set them; put back afterwards
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"study": {"name": "tiny"}}))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_help_lists_every_command(invoke):
    """Short and long form; each step has its own help."""
    listing = invoke("-h")
    assert listing.exit_code == 0
    assert listing.output == invoke("--help").output
    for name in ("run", "cohort", "convert", "presets", *STEPS):
        assert f"\n  {name} " in listing.output
        shown = invoke(name, "--help")
        assert shown.exit_code == 0, name
        assert "Usage:" in shown.output
    assert __version__ in invoke("--version").output


QUICK = {
    "help": ("from click.testing import CliRunner; from dualflow.cli import main; CliRunner().invoke(main, ['--help'])",
             ("torch", "pandas", "mlflow", "monai", "numpy")),
    "index": ("import dualflow.commands.make_index",
              ("torch", "mlflow", "monai", "nilearn", "distributed", "matplotlib")),
}  # fmt: skip


@pytest.mark.parametrize("case", QUICK)
def test_what_needs_nothing_heavy_imports_nothing_heavy(case):
    """Help is instant, and the index of a study takes no longer than its files ask for."""
    code, heavy = QUICK[case]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONWARNINGS": ""},
    )
    assert done.stdout.strip() == "[]"


def test_presets_lists_the_flows_and_shows_one(invoke):
    """By name, and piece by piece as a configuration names them."""
    listed = invoke("presets")
    lines = listed.output.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    shown = yaml.safe_load(invoke("presets", "dual_glow").output)
    assert shown == PRESETS["dual_glow"].spec.to_dict()
    assert all(row.paper in line and row.idea in line for row, line in zip(PRESETS.values(), lines, strict=True))


CASES = {
    "unknown preset": (["presets", "nope"], 2, f"unknown preset 'nope'; choose from: {', '.join(sorted(PRESETS))}"),
    "no file": (["index", "--config", "gone.yaml"], 2, "gone.yaml: cannot be read"),
    "unknown key": (["index", "--config", "tiny.yaml", "--set", "trian.steps=3"], 2, "did you mean 'train'?"),
    "bad value": (["index", "--config", "tiny.yaml", "--set", "train.steps=no"], 2, "train.steps = False"),
    "bad override": (["index", "--config", "tiny.yaml", "--set", "steps"], 2, "'steps' is not of the form"),
    "override in a value": (["index", "--config", "tiny.yaml", "--set", "study.name.x=1"], 2, "'name' is a value"),
    "override not YAML": (["index", "--config", "tiny.yaml", "--set", "train.steps=[1"], 2, "'[1' is not a YAML value"),
    "unknown model": (
        ["train", "--config", "tiny.yaml", "--model", "nope"],
        2,
        "unknown model 'nope'; choose from: dualflow, mean_image",
    ),
    "no index": (["train", "--config", "tiny.yaml"], 3, "pairs.tsv"),
    "no dataset": (["index", "--config", "tiny.yaml"], 3, "set study.bids to the root of a BIDS dataset"),
    "no model": (["evaluate", "--config", "tiny.yaml"], 4, "no model.json"),
    "no model to convert with": (["convert", "study", "--model", "gone", "--out", "out"], 4, "gone: no model.json"),
    "no workflow": (["run", "--config", "tiny.yaml"], 2, "holds no Snakefile"),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_one_line_with_an_exit_code(invoke, case):
    """What is wrong, what was expected, no traceback."""
    arguments, code, message = CASES[case]
    done = invoke(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stderr.startswith("dualflow: ")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_traceback_is_there_for_those_who_ask(invoke, monkeypatch):
    """`DUALFLOW_TRACEBACK=1` lets the error through."""
    monkeypatch.setenv("DUALFLOW_TRACEBACK", "1")
    assert isinstance(invoke("presets", "nope").exception, ConfigError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["convert", "study"],
        ["convert", "study", "--model", "m", "--out", "o", "--workers", "0"],
        ["convert", "study", "--model", "m", "--out", "o", "--samples", "1"],
        ["cohort", "out", "--seed", "-1"],
    ],
)
def test_wrong_usage_is_refused_before_any_work(invoke, arguments, tmp_path):
    """Exit code 2, and nothing is written."""
    assert invoke(*arguments).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
