"""Progress: lines in a log, the file for `dualflow run`, and its display."""

import json
import os
from contextlib import suppress

import pytest

from dualflow.commands.run import _Bars, _Lines
from dualflow.progress import PROGRESS_FOLDER, progress, read_states, track


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_FOLDER, str(tmp_path))
    return tmp_path


def test_log_has_a_first_and_a_last_line(capsys, monkeypatch):
    """And not one for each of a thousand items."""
    monkeypatch.delenv(PROGRESS_FOLDER, raising=False)
    assert list(track(range(1000), "count")) == list(range(1000))
    assert capsys.readouterr().err.splitlines() == ["count: 0/1000 after 0 s", "count: 1000/1000 after 0 s"]


def test_an_end_before_the_last_item_is_said(capsys):
    """How far it was, also when it fails."""
    with suppress(ZeroDivisionError), progress("count", 5) as shown:
        shown.advance(2, "loss 0.1")
        raise ZeroDivisionError
    assert capsys.readouterr().err.splitlines()[-1] == "count: 2/5 after 0 s loss 0.1"


def test_state_of_the_process_is_read_back(folder):
    """The newest of each process; what is broken or half written is passed over."""
    with progress("train", 4) as shown:
        assert list(read_states(folder).values()) == [("train", 0, 4, "")]
        shown.advance(4, "loss 0.1")
        (folder / "1.json").write_text('{"label"')
        (folder / "2.json").write_text("{}")
        (folder / "3.tmp").write_text("{}")
        assert read_states(folder) == {f"{os.getpid()} train": ("train", 4, 4, "loss 0.1")}


def test_a_folder_that_is_gone_stops_nothing(folder, capsys):
    """The display is lost, the work goes on."""
    folder.rmdir()
    assert list(track([1, 2], "count")) == [1, 2]
    assert "count: 2/2" in capsys.readouterr().err


def test_display_has_one_bar_per_job(folder):
    """However often it is refreshed, beside the one of all steps; a job without a total has none yet."""
    bars = _Bars()
    try:
        for done in range(3):
            bars.show({"1 train": ("train", done, 5, ""), "2 wait": ("wait", 0, 0, "")}, done, 9)
        assert [(task.description, task.completed, task.total) for task in bars.bars.tasks] == [
            ("[bold]all steps", 2, 9),
            ("train", 2, 5),
        ]
    finally:
        bars.close()


def test_without_a_terminal_a_line_is_printed_when_a_step_ends(capsys):
    """With what is at work; not again while nothing ends."""
    lines, jobs = _Lines(), {"1 a": ("train", 2, 5, ""), "2 b": ("cohort", 4, 4, "")}
    lines.show({}, 0, 0)
    lines.show(jobs, 1, 9)
    lines.show(jobs, 1, 9)
    assert capsys.readouterr().out.splitlines() == ["0 of ? steps done", "1 of 9 steps done; train 2/5"]


def test_state_file_is_never_half_written(folder):
    """It is whole JSON after every step, with no temporary file beside it."""
    for _ in track(range(3), "count"):
        (file,) = folder.iterdir()
        assert json.loads(file.read_text())["label"] == "count"
