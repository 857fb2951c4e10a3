"""Atomic writes: verification, crashes and permissions."""

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dualflow.commit import commit_bytes, commit_json, commit_text, committing, committing_folder
from dualflow.errors import CommitError
from dualflow.lifetime import HOST
from dualflow.temporaries import TEMP_PREFIX, sweep_temporaries


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_complete(tmp_path):
    """The target exists only after the block; its folders are created, and no temporary file remains."""
    path = tmp_path / "a" / "b" / "x.nii.gz"
    with committing(path) as temp:
        assert temp.suffixes[-2:] == [".nii", ".gz"]
        temp.write_bytes(gzip.compress(b"voxels"))
        assert not path.exists()
    assert names(path.parent) == ["x.nii.gz"]


def test_an_error_in_the_block_keeps_the_old_file(tmp_path):
    """An exception in the block is raised, the old content stays and the temporary file is removed."""
    path = tmp_path / "x.txt"
    commit_text(path, "old")

    def fail():
        with committing(path) as temp:
            temp.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def safetensors(cut: int = 0) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    return data[: len(data) - cut]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.nii.gz", gzip.compress(bytes(10000), mtime=0)[:-5]),
        ("x.nii.gz", b"not gzip"),
        ("x.nii.gz", gzip.compress(bytes(10000), mtime=0)[:10] + b"\xff" * 20),
        ("x.json", b'{"a": '),
        ("x.json", b"\xff\xfe"),
        ("x.safetensors", safetensors(cut=4)),
        ("x.safetensors", b"\x10"),
        ("x.txt", b""),
    ],
)
def test_damaged_content_is_refused(tmp_path, name, data):
    """Truncated or malformed content never replaces a valid file."""
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(CommitError, match=r"does not verify|nothing was written"):
        commit_bytes(path, data)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [name]


def test_valid_content_is_accepted(tmp_path):
    """The checks accept valid files."""
    for name, data in {"x.gz": gzip.compress(b"1"), "x.json": b"[]", "x.safetensors": safetensors()}.items():
        commit_bytes(tmp_path / name, data)
        assert (tmp_path / name).read_bytes() == data


def test_block_that_writes_nothing_is_an_error(tmp_path):
    """The error names the file."""
    with pytest.raises(CommitError, match=r"x\.txt"), committing(tmp_path / "x.txt"):
        pass


def test_unwritable_folder_is_one_clear_error(tmp_path):
    """A path below a file cannot be created; the error says what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(CommitError, match="change the output folder"):
        commit_text(tmp_path / "file" / "x.txt", "x")


def test_json_is_stable_and_strict(tmp_path):
    """The bytes do not depend on key order, and NaN is refused."""
    commit_json(tmp_path / "a.json", {"b": 1, "a": 2})
    commit_json(tmp_path / "b.json", {"a": 2, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        commit_json(tmp_path / "c.json", {"a": float("nan")})


def test_a_killed_writer_keeps_the_old_file(tmp_path):
    """After SIGKILL inside a block, the old file is intact, and the temporary file is swept."""
    path = tmp_path / "x.txt"
    commit_text(path, "old")
    code = (
        "import sys, os, signal\nfrom dualflow.commit import committing\n"
        "with committing(sys.argv[1]) as temp:\n"
        "    temp.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], timeout=600, check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    assert sweep_temporaries(tmp_path) == 1
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
@pytest.mark.parametrize("library", ["write_bytes", "mkstemp", "save_file"])
def test_mode_follows_the_umask(tmp_path, umask, library):
    """A file has the mode of the umask, also if a library writes it with 0600."""
    path, previous = tmp_path / "x.safetensors", os.umask(umask)
    try:
        with committing(path) as temp:
            if library == "write_bytes":
                temp.write_bytes(safetensors())
            elif library == "mkstemp":
                descriptor, name = tempfile.mkstemp(dir=tmp_path)
                os.write(descriptor, safetensors())
                os.close(descriptor)
                Path(name).replace(temp)
                assert stat.S_IMODE(temp.stat().st_mode) == 0o600
            else:
                save_file({"w": np.zeros(4, np.float32)}, temp)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_private_file_is_for_its_owner_alone(tmp_path):
    """Also while it is written, and in place of one that others could read."""
    path = tmp_path / "x.json"
    commit_json(path, {"password": "old"})
    with committing(path, private=True) as temp:
        assert stat.S_IMODE(temp.stat().st_mode) == 0o600
        temp.write_text("{}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_appears_only_when_complete(tmp_path):
    """The folder and its parents exist after the block, and a second one replaces all its files."""
    folder = tmp_path / "a" / "model"
    with committing_folder(folder) as temp:
        commit_text(temp / "old.txt", "old")
        assert not folder.exists()
    with committing_folder(folder) as temp:
        commit_text(temp / "new.txt", "new")
        assert names(folder) == ["old.txt"]
    assert names(folder) == ["new.txt"]
    assert names(folder.parent) == ["model"]


def test_hidden_entries_stay_on_request(tmp_path):
    """Temporary files of a killed process do not."""
    folder = tmp_path / "model"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("main")
    (folder / ".tmp-host-1-0-weights").write_text("part")
    with committing_folder(folder, keep_hidden=True) as temp:
        commit_text(temp / "new.txt", "new")
    assert names(folder) == [".git", "new.txt"]
    with committing_folder(folder) as temp:
        commit_text(temp / "new.txt", "new")
    assert names(folder) == ["new.txt"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), ConnectionError("gone"), KeyboardInterrupt()])
def test_an_error_keeps_the_old_folder(tmp_path, error):
    """The error is raised as it is, also one that is a kind of OSError; nothing else is left."""
    folder = tmp_path / "model"
    with committing_folder(folder) as temp:
        commit_text(temp / "old.txt", "old")

    def fail():
        with committing_folder(folder) as temp:
            commit_text(temp / "new.txt", "new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(folder) == ["old.txt"]
    assert names(tmp_path) == ["model"]


def test_a_refused_exchange_keeps_the_old_folder(tmp_path, monkeypatch):
    """If the second rename fails, the first is undone."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    replace = Path.replace

    def refuse(path, target):
        if target == folder and (path / "new.txt").exists():
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CommitError, match="Input/output error"), committing_folder(folder) as temp:
        commit_text(temp / "new.txt", "new")
    assert names(folder) == ["old.txt"]
    assert names(tmp_path) == ["model"]


def test_folders_of_killed_processes_are_removed(tmp_path):
    """By the next commit of the same folder, and by a sweep; those of running processes stay."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def leave(pid, name):
        folder = tmp_path / f"{TEMP_PREFIX}{HOST}-{pid}-00-{name}"
        folder.mkdir()
        (folder / "x.txt").write_text("x")
        return folder

    stale, other, running = leave(dead.pid, "model"), leave(dead.pid, "other"), leave(os.getppid(), "model")
    with committing_folder(tmp_path / "model"):
        assert (stale.exists(), other.exists(), running.exists()) == (False, True, True)
    assert sweep_temporaries(tmp_path) == 1
    assert names(tmp_path) == sorted([running.name, "model"])
