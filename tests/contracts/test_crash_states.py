"""A crash at any moment, on a disk that reorders: files are old or new, and a manifest never lists a broken output."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_states import crash_states, recording

from dualflow import commit
from dualflow.commit import commit_bytes, committing_folder
from dualflow.manifest import read_manifest, write_manifest

OLD, NEW = b"old content", b"new content, longer"


def write_file(root: Path) -> None:
    commit_bytes(root / "file.txt", NEW)


def write_in_new_folders(root: Path) -> None:
    commit_bytes(root / "a/b/c/file.txt", NEW)


def write_folder(root: Path) -> None:
    with committing_folder(root / "model") as temp:
        commit_bytes(temp / "weights.txt", NEW)
        commit_bytes(temp / "card.txt", NEW)


def finish_step(root: Path) -> None:
    """Two outputs and their manifest, as every step of the workflow writes them."""
    for name in ("one", "two"):
        commit_bytes(root / "out" / f"{name}.txt", NEW)
    outputs = {name: root / "out" / f"{name}.txt" for name in ("one", "two")}
    write_manifest(root / "manifests/step.json", step="step", outputs=outputs, inputs={}, config={})


def same_files(*names: str) -> Callable[[Path, bool], bool]:
    """Each file is old, new or missing; once the operation has returned, it is new."""

    def valid(root: Path, returned: bool) -> bool:
        contents = [file.read_bytes() if (file := root / name).is_file() else None for name in names]
        return all(content == NEW if returned else content in (None, OLD, NEW) for content in contents)

    return valid


def one_folder(root: Path, returned: bool) -> bool:
    """The folder is old, new or missing as a whole."""
    contents = {file.name: file.read_bytes() for file in (root / "model").glob("*")}
    new = {"weights.txt": NEW, "card.txt": NEW}
    return contents == new if returned else contents in ({}, {"weights.txt": OLD}, new)


def honest_manifest(root: Path, returned: bool) -> bool:
    """The manifest verifies only with both outputs; once the step has returned, it does."""
    manifest = read_manifest(root / "manifests/step.json")
    whole = same_files("out/one.txt", "out/two.txt")(root, True)
    return (manifest is not None and whole) if returned else (manifest is None or whole)


CASES = {
    "a new file": (write_file, {}, same_files("file.txt")),
    "a replaced file": (write_file, {"file.txt": OLD}, same_files("file.txt")),
    "new folders": (write_in_new_folders, {}, same_files("a/b/c/file.txt")),
    "a new folder of files": (write_folder, {}, one_folder),
    "a replaced folder": (write_folder, {"model/weights.txt": OLD}, one_folder),
    "a step": (finish_step, {}, honest_manifest),
    "a step again": (finish_step, {"out/one.txt": OLD, "manifests/step.json": b"{}"}, honest_manifest),
}


def lay_out(root: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def replay(case: str, root: Path, monkeypatch, crashes: int = 1) -> tuple[int, int]:
    """Run a case, recorded, and check every crash state of it; return how many there are, and how many are bad.

    With more `crashes`, the case runs again after each crash, and may crash again.
    """
    write, before, valid = CASES[case]
    starts, states, bad = [before], 0, 0
    for _ in range(crashes):
        ends = {}
        for start in starts:
            lay_out(root, start)
            with recording(root, monkeypatch) as recorder:
                write(root)
            for returned, state in crash_states(recorder):
                lay_out(root, state)
                states += 1
                bad += not valid(root, returned)
                ends[tuple(sorted(state.items()))] = state
        starts = list(ends.values())
    return states, bad


def test_no_crash_state_is_accepted_by_mistake(tmp_path, monkeypatch):
    """Over a thousand states of all cases, with a second crash while the first is made good."""
    counts = {case: replay(case, tmp_path / "disk", monkeypatch, crashes=2) for case in CASES}
    assert {case: bad for case, (_, bad) in counts.items() if bad} == {}
    assert sum(states for states, _ in counts.values()) >= 1000, counts


def skip_sync(is_skipped: Callable[[Path], bool]) -> Callable[[Path], None]:
    real = commit._fsync
    return lambda path: None if is_skipped(path) else real(path)


def write_in_place(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    path.write_bytes(data)
    commit._fsync(path)
    commit._fsync(path.parent)


BUGS = {
    "files are not flushed": ("a replaced file", "_fsync", skip_sync(Path.is_file)),
    "the folder is not flushed": ("a new file", "_fsync", skip_sync(Path.is_dir)),
    "new folders are not flushed into their parents": (
        "new folders", "_make_folder", lambda folder: folder.mkdir(parents=True, exist_ok=True),
    ),
    "outputs of a step are not flushed": ("a step", "_fsync", skip_sync(lambda path: path.suffix == ".txt")),
    "the files of a folder are not flushed": ("a new folder of files", "_fsync", skip_sync(Path.is_file)),
    "a folder of files is not flushed": (
        "a new folder of files", "_fsync", skip_sync(lambda path: path.name.endswith("model")),
    ),
    "the parent of a replaced folder is not flushed": (
        "a replaced folder", "_fsync", skip_sync(lambda path: path.name == "disk"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_the_replay_notices_a_missing_flush(bug, tmp_path, monkeypatch):
    """Without any one of the flushes, some crash state is bad."""
    case, name, replacement = BUGS[bug]
    monkeypatch.setattr(commit, name, replacement)
    assert replay(case, tmp_path / "disk", monkeypatch)[1] > 0


def test_the_replay_notices_a_write_in_place(tmp_path, monkeypatch):
    """A file that is written under its final name can be half written."""
    monkeypatch.setitem(globals(), "commit_bytes", write_in_place)
    assert replay("a replaced file", tmp_path / "disk", monkeypatch)[1] > 0
