"""The command line: help, completion, imports and errors."""

import os
import re
import signal
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from dualflow import __version__
from dualflow.cli import USER_COMMANDS, WORKFLOW_STEPS, main
from dualflow.cli.group import EXIT_CODES
from dualflow.errors import ConfigError, DualflowError
from dualflow.flows.presets import PRESETS


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Return a function that runs a command in a folder with `tiny.yaml` only."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "1")  # the commands set them; monkeypatch restores them
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"study": {"name": "tiny"}}))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_help_lists_every_command_in_its_section(invoke):
    """User commands precede workflow steps, and no summary is truncated."""
    listing = invoke("-h")
    assert listing.exit_code == 0
    assert listing.output == invoke("--help").output
    commands, steps = listing.output.split("\nCommands:\n")[1].split("\nWorkflow steps:\n")
    for text, names in ((commands, USER_COMMANDS), (steps, WORKFLOW_STEPS)):
        for name in names:
            assert f"\n  {name} " in f"\n{text}"
    assert "..." not in commands + steps
    assert __version__ in invoke("--version").output


@pytest.mark.parametrize("name", [*USER_COMMANDS, *WORKFLOW_STEPS])
def test_every_command_has_help(invoke, name):
    """The help of user commands has examples."""
    shown = invoke(name, "--help")
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: main {name}")
    if name in USER_COMMANDS:
        assert f"\n  dualflow {name}" in shown.output


def test_help_documents_every_exit_code(invoke):
    """Each error class ends with a code that the help explains."""
    text = invoke("--help").output.split("\nExit codes:\n")[1]
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", text, re.MULTILINE)
    classes = [DualflowError]
    for error in classes:
        classes += error.__subclasses__()
        assert error.exit_code in EXIT_CODES


def test_the_module_is_the_command():
    """`python -m dualflow.cli` works like `dualflow`."""
    done = subprocess.run(
        [sys.executable, "-m", "dualflow.cli", "presets", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("dualflow: unknown preset 'nope'")
    shown = subprocess.run([sys.executable, "-m", "dualflow.cli", "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("Usage: dualflow ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [("dualflow ini", "init"), ("dualflow pres", "presets"), ("dualflow run --config quick", "quickstart")],
)
def test_the_shell_completes(words, expected):
    """Completion offers commands and packaged configurations."""
    done = subprocess.run(
        [sys.executable, "-m", "dualflow.cli"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {"_DUALFLOW_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)},
    )
    assert f"plain,{expected}" in done.stdout.splitlines()


HELP = "from click.testing import CliRunner; from dualflow.cli import main; CliRunner().invoke(main, ['--help'])"
LARGE = ("torch", "mlflow", "monai", "matplotlib", "nilearn")
QUICK = {
    HELP: (*LARGE, "pandas", "numpy", "distributed"),
    **{f"import dualflow.commands.{step}": (*LARGE, "distributed") for step in ("check", "make_index", "qc")},
    "import dualflow.commands.preprocess": LARGE,
    "import dualflow.commands.make_cohort": (*LARGE, "distributed"),
    **{
        f"import dualflow.commands.{step}": ("mlflow", "monai", "scipy.stats")
        for step in ("train", "evaluate", "convert_study", "report")
    },
}
"""Code, and the slow modules that it must not import."""


@pytest.mark.parametrize("code", QUICK)
def test_a_command_imports_only_what_it_needs(code):
    """Slow imports would delay the help and every step."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print([name for name in {QUICK[code]} if name in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONWARNINGS": ""},
    )
    assert done.stdout.strip() == "[]"


def test_presets_are_listed_and_printed(invoke):
    """A single preset is printed with the keys of a configuration."""
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
    "key given twice": (
        ["index", "--config", "tiny.yaml", "--set", "impute.analyses={a: suvr ~ age, a: suvr ~ sex}"],
        2,
        "'a' is given twice; join its entries under one key",
    ),
    "override not YAML": (["index", "--config", "tiny.yaml", "--set", "train.steps=[1"], 2, "'[1' is not a YAML value"),
    "unknown model": (
        ["train", "--config", "tiny.yaml", "--model", "nope"],
        2,
        "unknown model 'nope'; choose from: dualflow, mean_image",
    ),
    "no index": (["train", "--config", "tiny.yaml"], 3, "pairs.tsv"),
    "no cohort": (["index", "--config", "tiny.yaml"], 3, "index: step cohort is not done in results/tiny"),
    "no dataset": (
        ["index", "--config", "tiny.yaml", "--set", "study.bids=."],
        3,
        ".: holds no sub-* folder, expected the root of a BIDS dataset; check the path",
    ),
    "no shards": (
        ["preprocess-finish", "--config", "tiny.yaml"],
        3,
        "preprocess-finish: steps preprocess/shard-0 and 1 more are not done",
    ),
    "no scores": (["report", "--config", "tiny.yaml"], 3, "`dualflow run` runs all steps in order"),
    "no pages": (["qc", "--config", "tiny.yaml"], 3, "qc: step preprocess is not done"),
    "no quarantine": (["check", "--config", "tiny.yaml"], 3, "check: step preprocess is not done"),
    "no model": (["evaluate", "--config", "tiny.yaml"], 4, "no model.json"),
    "no model to convert with": (["convert", ".", "--model", "gone", "--out", "out"], 4, "gone: no model.json"),
    "no model to export": (["export", "gone", "out"], 4, "gone: no model.json"),
    "no model to publish": (["publish", "gone", "--name", "fdg"], 4, "gone: no model.json"),
    "no registered model": (["export", "models:/fdg", "out"], 2, "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    "no name of a model": (["publish", "gone", "--name", "a/b"], 2, "registered model 'a/b': expected letters"),
    "nothing to convert": (
        ["convert", "gone", "--model", "model", "--out", "out"],
        3,
        "INPUT gone does not exist; name a NIfTI image",
    ),
    "no such configuration": (["run", "--config", "nope"], 2, "no configuration 'nope'; name a YAML file, or one of"),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_one_line_with_an_exit_code(invoke, case):
    """The error has no traceback."""
    arguments, code, message = CASES[case]
    done = invoke(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stderr.startswith("dualflow: ")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_a_traceback_on_request(invoke, monkeypatch):
    """With `DUALFLOW_TRACEBACK=1` the exception propagates."""
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
        ["publish", "model"],
    ],
)
def test_wrong_usage_is_refused_before_any_work(invoke, arguments, tmp_path):
    """The exit code is 2, and no file is written."""
    assert invoke(*arguments).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_an_interrupted_conversion_says_how_to_resume(invoke, tmp_path, monkeypatch):
    """Ctrl-C ends with one line and the exit code of an interrupt."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dualflow.commands.convert.convert", interrupt)
    done = invoke("convert", str(tmp_path), "--model", "m", "--out", "results")
    assert done.exit_code == 130
    assert done.stderr == "dualflow: interrupted; finished scans are in results, and the same command resumes\n"


def test_ctrl_c_ends_a_command_with_130(monkeypatch):
    """Also where no command expects it, such as in its imports."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dualflow.commands.doctor.diagnose", interrupted)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 130
    assert result.stderr == "dualflow: interrupted; the same command resumes\n"


SLEEPING = """
import signal
import time
import click
from dualflow.cli.group import SectionedGroup

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it

@click.command()
def wait():
    print("ready", flush=True)
    time.sleep(60)

SectionedGroup(sections={"Test": {"wait": wait}})()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_command_with_130(number):
    """What it holds is closed on the way."""
    command = [sys.executable, "-c", SLEEPING, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(60) == 130
        assert process.stderr.read() == "dualflow: interrupted; the same command resumes\n"
