"""Temporary files and folders of ended processes are removed, those of running ones stay."""

import os
import stat
import subprocess
import sys
import tempfile

from dualflow.lifetime import HOST
from dualflow.temporaries import TEMP_PREFIX, scratch_folder, sweep_temporaries


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_sweep_removes_only_temporary_files_of_ended_processes(tmp_path):
    """Zombie processes have ended; files of another machine are removed if they are old."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / "deep").mkdir()
    suffix, local, remote = f"{child.pid}-ab-x.txt", f"{TEMP_PREFIX}{HOST}-", f"{TEMP_PREFIX}another-"
    stale = [tmp_path / "deep" / f"{local}{suffix}", tmp_path / f"{remote}1{suffix}"]
    kept = [f"{local}{os.getpid()}-ab-x.txt", f"{remote}{suffix}", f"{TEMP_PREFIX}note", "x.txt"]
    for path in (*stale, *(tmp_path / name for name in kept)):
        path.touch()
    os.utime(stale[1], (0, 0))
    assert sweep_temporaries(tmp_path) == 2
    child.wait()
    assert names(tmp_path) == sorted(["deep", *kept])
    assert names(tmp_path / "deep") == []


def test_scratch_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    """By the next process that needs one; it is private and ends with its block."""
    monkeypatch.setattr("dualflow.temporaries.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    others = ["dualflow-study-2024", f"dualflow-0badcafe-{dead.pid}-ab", f"dualflow-{HOST}-{os.getpid()}-ab"]
    for name in (f"dualflow-{HOST}-{dead.pid}-ab", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
        os.utime(tmp_path / name, (0, 0))
    with scratch_folder() as scratch:
        assert names(tmp_path) == sorted([*others, scratch.name])
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
        assert str(os.getpid()) in scratch.name
    assert names(tmp_path) == sorted(others)


def test_a_temporary_file_that_vanishes_meanwhile_is_left_alone(tmp_path):
    """Another process of its machine renamed it; nothing is removed in its place."""
    remote = tmp_path / f"{TEMP_PREFIX}another-1-ab-x.txt"
    remote.symlink_to(tmp_path / "missing")
    assert sweep_temporaries(tmp_path) == 0
    assert remote.is_symlink()
