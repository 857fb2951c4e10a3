"""Progress in logs and state files."""

import json
import os
import re
from contextlib import suppress

import pytest

from dualflow.progress import PROGRESS_FOLDER, progress, read_states, track


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_FOLDER, str(tmp_path))
    return tmp_path


def test_a_log_has_a_first_and_a_last_line(capsys, monkeypatch):
    """A log of a thousand items has two lines."""
    monkeypatch.delenv(PROGRESS_FOLDER, raising=False)
    assert list(track(range(1000), "count")) == list(range(1000))
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"count: 0/1000 after \d+ s", first)
    assert re.fullmatch(r"count: 1000/1000 after \d+ s", last)


def test_an_early_end_is_logged(capsys):
    """The last line has the count at which the loop ended or failed."""
    with suppress(ZeroDivisionError), progress("count", 5) as bar:
        bar.advance(2, "loss 0.1")
        raise ZeroDivisionError
    assert re.fullmatch(r"count: 2/5 after \d+ s loss 0\.1", capsys.readouterr().err.splitlines()[-1])


def test_processes_that_share_the_work_show_it_once(folder, capsys):
    """All but one count without lines and files."""
    with progress("train", 2, visible=False) as bar:
        bar.advance(2)
    assert bar.done == 2
    assert capsys.readouterr().err == ""
    assert not list(folder.iterdir())


def test_the_state_of_a_process_is_read_back(folder):
    """The newest state of each process is read; broken and incomplete files are ignored."""
    with progress("train", 4) as bar:
        assert list(read_states(folder).values()) == [("train", 0, 4, "")]
        bar.advance(4, "loss 0.1")
        (folder / "1.json").write_text('{"label"')
        (folder / "2.json").write_text("{}")
        (folder / "3.tmp").write_text("{}")
        assert read_states(folder) == {f"{os.getpid()} train": ("train", 4, 4, "loss 0.1")}


def test_a_missing_folder_does_not_stop_the_loop(folder, capsys):
    """The loop continues without a state file."""
    folder.rmdir()
    assert list(track([1, 2], "count")) == [1, 2]
    assert "count: 2/2" in capsys.readouterr().err


def test_the_state_file_is_always_complete(folder):
    """The file is valid JSON after every step, and no temporary file remains."""
    for _ in track(range(3), "count"):
        (file,) = folder.iterdir()
        assert json.loads(file.read_text())["label"] == "count"
