import gzip
import json
import os
import signal
import subprocess
import sys

import pytest

from dualflow import commit
from dualflow.commit import (
    HOST,
    TEMP_PREFIX,
    commit_bytes,
    commit_json,
    commit_text,
    committing,
    digest_of,
    forget_broken,
    read_manifest,
    sha256,
    sweep_temporaries,
    write_manifest,
)
from dualflow.errors import CommitError


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_only_when_whole(tmp_path):
    """Inside the block the target does not exist; afterwards it does, folders are made, and no temp is left."""
    path = tmp_path / "a" / "b" / "x.nii.gz"
    with committing(path) as temp:
        assert temp.suffixes[-2:] == [".nii", ".gz"]
        temp.write_bytes(gzip.compress(b"voxels"))
        assert not path.exists()
    assert names(path.parent) == ["x.nii.gz"]


def test_error_inside_leaves_the_old_file(tmp_path):
    """An exception in the block passes through, the old content stays and the temporary file is gone."""
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
        ("x.json", b'{"a": '),
        ("x.json", b"\xff\xfe"),
        ("x.safetensors", safetensors(cut=4)),
        ("x.safetensors", b"\x10"),
        ("x.txt", b""),
    ],
)
def test_damaged_content_is_refused(tmp_path, name, data):
    """What is cut short or does not parse is not committed over a good file."""
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(CommitError, match=r"does not verify|nothing was written"):
        commit_bytes(path, data)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [name]


def test_whole_content_is_accepted(tmp_path):
    """The checks let good files pass."""
    for name, data in {"x.gz": gzip.compress(b"1"), "x.json": b"[]", "x.safetensors": safetensors()}.items():
        commit_bytes(tmp_path / name, data)
        assert (tmp_path / name).read_bytes() == data


def test_block_that_writes_nothing_is_an_error(tmp_path):
    """A writer that forgot to write is told so instead of leaving a stale or empty file."""
    with pytest.raises(CommitError, match=r"x\.txt"), committing(tmp_path / "x.txt"):
        pass


def test_unwritable_folder_is_one_clear_error(tmp_path):
    """A path below a file cannot be made: the message names it and says what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(CommitError, match="change the output folder"):
        commit_text(tmp_path / "file" / "x.txt", "x")


def test_json_is_stable_and_strict(tmp_path):
    """Key order does not matter to the bytes, and NaN is refused."""
    commit_json(tmp_path / "a.json", {"b": 1, "a": 2})
    commit_json(tmp_path / "b.json", {"a": 2, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        commit_json(tmp_path / "c.json", {"a": float("nan")})


def test_killed_writer_leaves_the_old_file(tmp_path):
    """After SIGKILL inside a block the old file is whole, and the orphan is swept, for its process is gone."""
    path = tmp_path / "x.txt"
    commit_text(path, "old")
    code = (
        "import sys, os, signal\nfrom dualflow.commit import committing\n"
        "with committing(sys.argv[1]) as temp:\n"
        "    temp.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    assert sweep_temporaries(tmp_path) == 1
    assert names(tmp_path) == ["x.txt"]


def test_sweep_spares_living_writers_and_other_files(tmp_path):
    """Only files of processes that are gone are removed, collected or not; another machine's only when they are old."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / "deep").mkdir()
    gone, here, there = f"{child.pid}-ab-x.txt", f"{TEMP_PREFIX}{HOST}-", f"{TEMP_PREFIX}another-"
    dead = [tmp_path / "deep" / f"{here}{gone}", tmp_path / f"{there}1{gone}"]
    keep = [f"{here}{os.getpid()}-ab-x.txt", f"{there}{gone}", f"{TEMP_PREFIX}note", "x.txt"]
    for path in (*dead, *(tmp_path / name for name in keep)):
        path.touch()
    os.utime(dead[1], (0, 0))
    assert sweep_temporaries(tmp_path) == 2
    child.wait()
    assert names(tmp_path) == sorted(["deep", *keep])
    assert names(tmp_path / "deep") == []


@pytest.fixture
def manifest(tmp_path):
    output = tmp_path / "out" / "x.txt"
    commit_text(output, "result")
    path = tmp_path / "manifests" / "step.json"
    write_manifest(path, step="step", outputs={"x": output}, inputs={"in": "abc"}, config={"k": 1}, facts={"n": 2})
    return path


def test_manifest_of_finished_work_verifies(manifest):
    """The manifest reads back with its facts, for the same inputs and configuration and without asking."""
    assert read_manifest(manifest, inputs={"in": "abc"}, config={"k": 1})["facts"] == {"n": 2}
    assert read_manifest(manifest)["outputs"]["x"]["sha256"] == sha256(manifest.parents[1] / "out" / "x.txt")


def test_manifest_survives_a_moved_study(manifest, tmp_path):
    """Outputs are relative to the manifest, so a study that is moved as a whole is still done."""
    study = manifest.parents[1]
    moved = study.rename(study.with_name("moved"))
    assert read_manifest(moved / "manifests" / "step.json") is not None


@pytest.mark.parametrize(
    "asked", [{"inputs": {"in": "xyz"}}, {"inputs": {}}, {"config": {"k": 2}}, {"config": {"k": 1, "new": 0}}]
)
def test_manifest_of_other_work_does_not_count(manifest, asked):
    """Other inputs or another configuration mean that the work has to be done again."""
    assert read_manifest(manifest, **asked) is None


def test_manifest_of_another_version_does_not_count(manifest, monkeypatch):
    """Work of another version of dualflow is done again."""
    monkeypatch.setattr(commit, "__version__", "0.0.0")
    assert read_manifest(manifest, config={"k": 1}) is None


@pytest.mark.parametrize("damage", ["changed", "removed", "cut", "other"])
def test_damaged_work_does_not_count(manifest, damage):
    """A changed or lost output, and a manifest that is no manifest, mean not done - never a traceback."""
    output = manifest.parents[1] / "out" / "x.txt"
    if damage == "changed":
        output.write_text("resulT")
    elif damage == "removed":
        output.unlink()
    else:
        manifest.write_text("[1]" if damage == "other" else manifest.read_text()[:-9])
    assert read_manifest(manifest) is None


def test_missing_manifest_is_not_done(tmp_path):
    """No manifest, not done."""
    assert read_manifest(tmp_path / "none.json") is None


def test_a_step_whose_output_is_gone_is_forgotten_with_all_that_rests_on_it(tmp_path):
    """The damaged step and the one that lists its manifest lose theirs; an untouched one keeps it."""
    kept, damaged = tmp_path / "kept.txt", tmp_path / "damaged.txt"
    for path in (kept, damaged):
        commit_text(path, "content")
    folder = tmp_path / "manifests"
    for name, outputs in (
        ("kept", {"file": kept}),
        ("deep/damaged", {"file": damaged}),
        ("rests", {"part": folder / "deep/damaged.json"}),
    ):
        write_manifest(folder / f"{name}.json", step="s", outputs=outputs, inputs={}, config={})
    assert forget_broken(folder) == []
    damaged.write_text("another")
    assert sorted(forget_broken(folder)) == ["deep/damaged", "rests"]
    assert [path.name for path in folder.rglob("*.json")] == ["kept.json"]
