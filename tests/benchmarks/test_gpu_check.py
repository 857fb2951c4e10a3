"""The GPU check: its rows, its table, and machines without a GPU; the rows run on the CPU at reduced size."""

from __future__ import annotations

import os

import gpu_check
import pytest
import torch
from click.testing import CliRunner
from gpu_rows import CHECKS, SCALES, Outcome

from dualflow.errors import ConfigError
from dualflow.flows import model as flow_module


def _crash(*_arguments):
    os._exit(7)


def test_a_failing_row_does_not_stop_the_others(monkeypatch, capsys):
    """A row that raises fails with its error; the next row runs, with its numbers."""
    # The process of the row has no check of this name.
    monkeypatch.setattr(gpu_check, "CHECKS", {"absent": ("Absent", None), **CHECKS})
    outcomes = gpu_check.run_checks(["absent", "gradients"], "cpu")
    assert [outcome.passed for outcome, _ in outcomes.values()] == [False, True]
    assert outcomes["absent"][0].numbers == "KeyError: 'absent'"
    assert "reversible" in outcomes["gradients"][0].numbers
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["FAIL", "pass"]


def test_a_crash_is_a_failed_row(monkeypatch):
    """The exit code of the process is in the table."""
    monkeypatch.setattr(gpu_check, "_send_outcome", _crash)
    outcome, _ = gpu_check.run_checks(["gradients"], "cpu")["gradients"]
    assert not outcome.passed
    assert outcome.numbers == "its process ended early with exit code 7"


def test_the_check_ends_in_time():
    """A row is stopped at the end of the time, and those after it do not start."""
    outcomes = gpu_check.run_checks(["gradients", "training"], "cpu", budget=0.01)
    assert [outcome.numbers for outcome, _ in outcomes.values()] == ["stopped after 0 s", "not run: no time left"]


def test_the_table_is_ready_for_the_docs(monkeypatch, tmp_path):
    """It names device, version and date, has a row per check, and the exit code is 1 if one fails."""
    outcomes = {"training": (Outcome(True, "loss 1"), 12.4), "step": (Outcome(False, "ratio 9"), 0.6)}
    monkeypatch.setattr(gpu_check, "run_checks", lambda names, device: {name: outcomes[name] for name in names})
    out = tmp_path / "gpu.md"
    for names, code in ((["training"], 0), (["training", "step"], 1)):
        options = [argument for name in names for argument in ("--row", name)]
        done = CliRunner().invoke(gpu_check.main, ["--device", "cpu", "--out", str(out), *options])
        assert done.exit_code == code, done.output
    lines = out.read_text().splitlines()
    assert lines[0].startswith(f"CPU, reduced sizes, torch {torch.__version__}, dualflow ")
    assert lines[0].endswith("1 of 2 checks passed.")
    assert lines[2:] == [
        "| check | result | numbers | seconds |",
        "|---|---|---|---|",
        "| Training on phantoms | pass | loss 1 | 12 |",
        "| Step over bare convolutions | **fail** | ratio 9 | 1 |",
    ]


def test_a_machine_without_a_gpu_gets_a_message(tmp_path):
    """One line says what to do; nothing is written."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path / "gpu.md")])
    assert done.exit_code == ConfigError.exit_code
    assert len(done.stderr.splitlines()) == 1
    assert "finds no GPU; use a machine with one" in done.stderr
    assert not list(tmp_path.iterdir())


# On a CPU these two repeat `training/test_distributed.py` and the conversion of `support/stand_in_checks.py`.
@pytest.mark.slow
@pytest.mark.parametrize("name", [row for row in CHECKS if row not in ("distributed", "conversion")])
def test_each_row_passes_on_the_cpu(name, monkeypatch):
    """At reduced size, in this process."""
    monkeypatch.setattr(flow_module, "SAMPLES_AT_ONCE", flow_module.SAMPLES_AT_ONCE)  # the prediction's row changes it
    outcome = CHECKS[name][1](SCALES["cpu"])
    assert outcome.passed, outcome.numbers
