"""One run at a time in a folder; locks of Snakemake are removed only if their run has certainly ended."""

import errno
import shutil
import subprocess
import sys

import pytest

from dualflow.commands.run_lock import LOCK, RUN, STATE, clear_study, join_run, run_lock
from dualflow.commit import commit_text
from dualflow.errors import CommitError, DataError
from dualflow.lifetime import HOST, KERNEL, ProcessMark, exclusive
from dualflow.manifest import TRANSIENT, write_manifest

# A folder of results may hold steps of a model that the configuration no longer names.
FORGOTTEN = ": its outputs were changed or removed, or it may succeed now; it runs again if still needed"


ELSEWHERE = ProcessMark("other", 1, 0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN, raising=False)
    return tmp_path


def leave_lock(mark):
    """Leave a lock of Snakemake, and the mark of its run."""
    (STATE / "locks").mkdir(parents=True)
    (STATE / "locks" / "0.input.lock").touch()
    LOCK.write_text(mark)


def dead():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return str(ProcessMark(HOST, process.pid, 0))


def test_locks_of_a_dead_run_are_removed(capsys):
    """It is said, and the lock names this process meanwhile."""
    leave_lock(dead())
    with run_lock():
        assert not list((STATE / "locks").iterdir())
        assert LOCK.read_text() == f"{ProcessMark.current()} {KERNEL}"
    assert "has ended without finishing" in capsys.readouterr().out
    assert LOCK.read_text() == ""


def test_a_full_disk_is_one_error(monkeypatch):
    """A repeated run on a full disk ends with the file and the remedy."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dualflow.commands.run_lock.os.write", full)
    with (
        pytest.raises(CommitError, match=rf"{LOCK}: cannot be written \(No space left on device\); free space"),
        run_lock(),
    ):
        pass


@pytest.mark.skipif(not KERNEL, reason="this system does not tell kernels apart")
def test_locks_of_a_dead_container_are_removed(monkeypatch, capsys):
    """Its process cannot be seen, but it would hold the lock; on a file system without locks that proves nothing."""
    leave_lock(f"{ELSEWHERE} {KERNEL}")
    with monkeypatch.context() as without_locks:
        without_locks.setattr("dualflow.commands.run_lock.is_locked", lambda _: False)
        with pytest.raises(DataError, match="another machine"), run_lock():
            pass
    with run_lock():
        assert not list((STATE / "locks").iterdir())
    assert "has ended without finishing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mark", "where"),
    [
        (f"{ProcessMark.current()} {KERNEL}", "this machine"),
        (f"{ELSEWHERE} {KERNEL}x", "another machine"),
        (f"{ELSEWHERE} ", "another machine"),
    ],
    ids=["this machine", "another machine", "another machine without a kernel"],
)
def test_locks_of_a_run_that_may_live_stay(mark, where):
    """Nothing proves that it has ended; the error says what to remove when it has."""
    leave_lock(mark)
    with pytest.raises(DataError, match=rf"{STATE}/locks.*{where}.*remove that folder"), run_lock():
        pass
    assert list((STATE / "locks").iterdir())
    assert LOCK.read_text() == mark
    shutil.rmtree(STATE / "locks")  # as the message says
    with run_lock():
        pass


def test_locks_of_other_workflows_stay():
    """Without a mark, they belong to a workflow that is not dualflow's."""
    leave_lock("")
    with run_lock():
        pass
    assert list((STATE / "locks").iterdir())


def test_a_mark_stays_while_locks_do():
    """Snakemake was killed and its locks remain: the next run judges by the mark."""
    with run_lock():
        (STATE / "locks").mkdir()
        (STATE / "locks" / "0.input.lock").touch()
    assert LOCK.read_text() == f"{ProcessMark.current()} {KERNEL}"


def test_a_plain_snakemake_takes_the_lock_and_clears_the_study(tmp_path):
    """It says which steps run again; a second one is refused."""
    commit_text(tmp_path / "out.txt", "result")
    manifest = tmp_path / "manifests" / "step.json"
    write_manifest(manifest, step="step", outputs={"x": tmp_path / "out.txt"}, inputs={}, config={})
    (tmp_path / "out.txt").write_text("damaged")
    lines = []
    assert join_run(tmp_path, lines.append)
    assert lines == [f"step{FORGOTTEN}"]
    assert not manifest.exists()
    assert not join_run(tmp_path, lines.append)


def test_a_failed_attempt_is_forgotten(tmp_path):
    """A scan whose disk was away is tried again, with its shard; one that is excluded for another reason stays."""
    manifests, lines = tmp_path / "manifests", []
    for scan, facts in (("sub-1", {TRANSIENT: True}), ("sub-2", {})):
        path = manifests / "scans" / f"{scan}.json"
        write_manifest(path, step="preprocess", outputs={}, inputs={}, config={}, facts=facts)
    shard = manifests / "preprocess" / "shard-0.json"
    outputs = {"sub-1": manifests / "scans" / "sub-1.json"}
    write_manifest(shard, step="preprocess", outputs=outputs, inputs={}, config={})
    clear_study(tmp_path, lines.append)
    assert [path.name for path in manifests.rglob("*.json")] == ["sub-2.json"]
    assert lines == [f"{step}{FORGOTTEN}" for step in ("preprocess/shard-0", "scans/sub-1")]


def test_under_a_run_snakemake_takes_nothing(tmp_path, monkeypatch):
    """`dualflow run` holds the lock and has looked for damage."""
    monkeypatch.setenv(RUN, "1")
    with exclusive(LOCK, ""):
        assert join_run(tmp_path, print)


def test_a_study_without_damage_forgets_nothing(tmp_path):
    """Nothing is said either."""
    lines = []
    clear_study(tmp_path, lines.append)
    assert lines == []


@pytest.mark.parametrize("option", ["--summary", "--report=report.zip"])
def test_looking_at_a_workflow_changes_nothing(tmp_path, monkeypatch, option):
    """`snakemake --lint`, `--summary` and the like take no lock and remove no manifest."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "step.json").write_text("broken")
    monkeypatch.setattr(sys, "argv", ["snakemake", option])
    assert join_run(tmp_path, print)
    assert (tmp_path / "manifests" / "step.json").exists()
    assert not LOCK.exists()


def test_a_run_within_a_run_shares_its_lock(monkeypatch):
    """`snakemake compare` holds the lock, and its steps are runs of other studies."""
    with run_lock():
        monkeypatch.setenv(RUN, "1")
        with run_lock() as inner:
            assert inner.fileno() > 0
        assert LOCK.read_text() == f"{ProcessMark.current()} {KERNEL}"
