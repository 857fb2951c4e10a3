"""Damaged files are read or refused: earlier findings, and a few random cases of each reader."""

from __future__ import annotations

from pathlib import Path

import fuzz
import pytest
from fuzz import TARGETS, case, failure, prepare, reduced, signature
from targets import Target

CORPUS = Path(__file__).with_name("corpus")
FINDINGS = sorted(path for path in CORPUS.rglob("*") if path.is_file())
CASES = 25


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Allow more CPU time than `make fuzz` does: the limit counts all threads that earlier tests left running."""
    monkeypatch.setattr(fuzz, "MAX_S", 10 * fuzz.MAX_S)


@pytest.fixture
def read(tmp_path):
    """Return the failure of a target on a content, in a folder where it has read its valid contents."""

    def read(target, data):
        prepare(target, tmp_path)
        fuzz.read_undamaged(target, tmp_path)
        return failure(target, data, tmp_path)

    return read


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_earlier_findings_stay_fixed(read, finding):
    """Each file of the corpus once made its reader fail."""
    assert read(TARGETS[finding.parent.name], finding.read_bytes()) is None


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_random_damage_is_refused_in_one_line(tmp_path, name):
    """Only a DualflowError escapes; the case is quick and changes nothing outside its folder."""
    target = TARGETS[name]
    prepare(target, tmp_path)
    fuzz.read_undamaged(target, tmp_path)
    for index in range(CASES):
        data = case(name, 0, index)
        error = failure(target, data, tmp_path)
        assert error is None, (index, error)


def test_a_case_is_the_same_each_time():
    """A failure is found again by target, seed and index."""
    assert case("card", 3, 7) == case("card", 3, 7) != case("card", 3, 8)


@pytest.mark.parametrize(
    ("name", "read_file"),
    [
        ("ZeroDivisionError", lambda folder: 1 / 0),
        ("OvertimeError", lambda folder: spin()),
        ("ChangeError", lambda folder: (folder.parent / "outside").write_text("x")),
        ("ChangeError", lambda folder: eval("1")),
    ],
)
def test_failures_are_noticed(tmp_path, monkeypatch, name, read_file):
    """A foreign error, a slow case, a file outside the folder and evaluated text are failures."""
    monkeypatch.setattr(fuzz, "MAX_S", 0.1)
    folder = tmp_path / "case"
    folder.mkdir()
    assert type(failure(Target("x", read_file, list), b"", folder)).__name__ == name


def spin():
    """Use CPU time without end."""
    while True:
        pass


def test_a_failure_is_reduced(tmp_path):
    """What does not matter for the failure is removed."""

    def read_file(folder):
        if b"X" in (folder / "x").read_bytes():
            raise ValueError

    target = Target("x", read_file, list)
    error = failure(target, b"some X text", tmp_path)
    assert reduced(target, b"some X text", tmp_path, signature(error)) == b"X"
