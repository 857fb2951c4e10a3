"""Manifests of finished steps: verification, invalidation and the cache of digests."""

import gzip
import json
import os

import pytest

from dualflow import manifest as module
from dualflow.commit import commit_bytes, commit_json, commit_text
from dualflow.digests import sha256
from dualflow.manifest import (
    DigestCache,
    forget_broken,
    read_manifest,
    remove_outputs,
    remove_step,
    verify_manifests,
    write_manifest,
)
from dualflow.revisions import REVISIONS


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that are hashed, in order."""
    names = []
    monkeypatch.setattr(module, "sha256", lambda path: names.append(path.name) or sha256(path))
    return names


@pytest.fixture
def manifest(tmp_path):
    output = tmp_path / "out" / "x.txt"
    commit_text(output, "result")
    path = tmp_path / "manifests" / "step.json"
    write_manifest(path, step="step", outputs={"x": output}, inputs={"in": "abc"}, config={"k": 1}, facts={"n": 2})
    return path


def test_the_manifest_of_a_finished_step_verifies(manifest):
    """The manifest is read with its facts, with and without expected inputs and configuration."""
    assert read_manifest(manifest, inputs={"in": "abc"}, config={"k": 1})["facts"] == {"n": 2}
    assert read_manifest(manifest)["outputs"]["x"]["sha256"] == sha256(manifest.parents[1] / "out" / "x.txt")


def test_manifests_survive_a_move_of_the_study(manifest, tmp_path):
    """Outputs are relative to the manifest, so a study can be moved as a whole."""
    study = manifest.parents[1]
    moved = study.rename(study.with_name("moved"))
    assert read_manifest(moved / "manifests" / "step.json") is not None


@pytest.mark.parametrize(
    "expected", [{"inputs": {"in": "xyz"}}, {"inputs": {}}, {"config": {"k": 2}}, {"config": {"k": 1, "new": 0}}]
)
def test_other_inputs_or_settings_invalidate_the_manifest(manifest, expected):
    """The step has to run again."""
    assert read_manifest(manifest, **expected) is None


@pytest.mark.parametrize("expected", [{"config": {"k": 1}}, {"inputs": {"in": "abc"}}])
def test_another_revision_of_the_step_invalidates_the_manifest(manifest, monkeypatch, expected):
    """After a change of what the step computes, it has to run again; its files can still be read."""
    monkeypatch.setitem(REVISIONS, "step", 2)
    assert read_manifest(manifest, **expected) is None
    assert read_manifest(manifest) is not None


def test_a_manifest_from_before_revisions_is_not_current(manifest):
    """Versions of that time do not tell what the step computed."""
    record = json.loads(manifest.read_text())
    del record["revision"]
    manifest.write_text(json.dumps(record))
    assert read_manifest(manifest, config={"k": 1}) is None


def test_a_release_that_leaves_a_step_as_it_is_does_not_repeat_it(manifest, monkeypatch):
    """The version is recorded, not compared."""
    monkeypatch.setattr(module, "__version__", "99.0.0")
    assert read_manifest(manifest, config={"k": 1}) is not None


@pytest.mark.parametrize("damage", ["changed", "removed", "truncated", "no mapping", "nested"])
def test_damage_invalidates_the_manifest(manifest, damage):
    """A changed or missing output, or a damaged manifest, means that the step is not done."""
    output = manifest.parents[1] / "out" / "x.txt"
    if damage == "changed":
        output.write_text("resulT")
    elif damage == "removed":
        output.unlink()
    else:
        texts = {"no mapping": "[1]", "nested": "[" * 100_000}
        manifest.write_text(texts.get(damage) or manifest.read_text()[:-9])
    assert read_manifest(manifest) is None


def test_a_step_without_a_manifest_is_not_done(tmp_path):
    """A missing manifest reads as None."""
    assert read_manifest(tmp_path / "none.json") is None


@pytest.fixture
def manifests(tmp_path):
    """Manifests of two steps, and a chain of two that depend on the second."""
    for name in ("kept", "damaged"):
        commit_text(tmp_path / f"{name}.txt", "content")
    folder = tmp_path / "manifests"
    for name, outputs in (
        ("kept", {"file": tmp_path / "kept.txt"}),
        ("deep/damaged", {"file": tmp_path / "damaged.txt"}),
        ("dependent", {"part": folder / "deep/damaged.json"}),
        ("indirect", {"part": folder / "dependent.json"}),
    ):
        write_manifest(folder / f"{name}.json", step="s", outputs=outputs, inputs={}, config={})
    return folder


def test_broken_manifests_are_removed_with_their_dependents(manifests):
    """The manifests of the damaged step and of steps that list it are removed; others stay."""
    assert verify_manifests(manifests) == forget_broken(manifests) == []
    (manifests.parent / "damaged.txt").write_text("another")
    assert verify_manifests(manifests) == ["deep/damaged", "dependent", "indirect"]
    assert len(list(manifests.rglob("*.json"))) == 4, "verification removes nothing"
    assert forget_broken(manifests) == ["deep/damaged", "dependent", "indirect"]
    assert [path.name for path in manifests.rglob("*.json")] == ["kept.json"]


def test_a_cache_hashes_each_file_once(manifests, hashed):
    """A second verification with the same cache hashes only changed files, even of equal size."""
    digests, output = DigestCache(), manifests.parent / "damaged.txt"
    assert verify_manifests(manifests, digests) == []
    assert sorted(hashed) == ["damaged.json", "damaged.txt", "dependent.json", "kept.txt"]
    hashed.clear()
    assert forget_broken(manifests, digests) == []
    assert hashed == []
    commit_text(output, "CONTENT")
    assert verify_manifests(manifests, digests) == ["deep/damaged", "dependent", "indirect"]
    assert hashed == ["damaged.txt"]


def test_a_cache_detects_a_replaced_file(tmp_path):
    """A replaced file is hashed again, even if size and time are equal."""
    path, digests = tmp_path / "x.txt", DigestCache()
    commit_text(path, "old")
    before, times = digests.sha256(path), path.stat()
    commit_text(path, "new")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.sha256(path) == sha256(path) != before


def test_a_manifest_is_read_without_hashing(manifest, hashed):
    """Without verification, only inputs and configuration are compared."""
    (manifest.parents[1] / "out" / "x.txt").unlink()
    assert read_manifest(manifest, verify=False, config={"k": 1})["facts"] == {"n": 2}
    assert read_manifest(manifest, verify=False, config={"k": 2}) is None
    assert read_manifest(manifest.with_name("none.json"), verify=False) is None
    assert hashed == []
    assert read_manifest(manifest) is None


def test_volumes_of_an_earlier_conversion_are_removed(tmp_path):
    """Volumes in the manifest and their sidecars are removed; a broken or missing manifest removes nothing."""
    folder = tmp_path / "derivatives" / "sub-1"
    listed, sidecar, unlisted = folder / "a_pet.nii.gz", folder / "a_pet.json", folder / "b_T1w.json"
    table = folder / "a_regions.tsv"
    commit_json(sidecar, {})
    commit_json(unlisted, {})
    commit_bytes(table, b"region")
    commit_json(folder / "a_regions.json", {})
    commit_bytes(listed, gzip.compress(b""))
    manifest = tmp_path / "manifests" / "convert" / "sub-1.json"
    remove_outputs(manifest)
    write_manifest(manifest, step="convert", outputs={"synth": listed, "regions": table}, inputs={}, config={})
    remove_outputs(manifest)
    assert not listed.exists()
    assert not sidecar.exists()
    assert [path.name for path in folder.iterdir()] == ["b_T1w.json"]
    assert unlisted.exists()
    manifest.write_text("{")
    remove_outputs(manifest)


def test_a_step_is_removed_with_its_manifest(tmp_path):
    """A step that never ran needs no removal."""
    file, manifest = tmp_path / "a.txt", tmp_path / "manifests" / "step.json"
    remove_step(manifest)
    commit_bytes(file, b"a")
    write_manifest(manifest, step="step", outputs={"a": file}, inputs={}, config={})
    remove_step(manifest)
    assert not file.exists()
    assert not manifest.exists()


def test_outputs_that_a_step_wrote_again_are_kept(tmp_path):
    """With their sidecars; a file that the earlier run alone wrote goes."""
    again, gone = tmp_path / "a_pet.nii.gz", tmp_path / "b_pet.nii.gz"
    for file in (again, gone):
        commit_bytes(file, gzip.compress(b""))
        commit_json(file.with_name(file.name.replace(".nii.gz", ".json")), {})
    manifest = tmp_path / "manifests" / "step.json"
    write_manifest(manifest, step="step", outputs={"a": again, "b": gone}, inputs={}, config={})
    remove_outputs(manifest, keep=[again])
    assert {file.name for file in tmp_path.glob("*_pet*")} == {"a_pet.nii.gz", "a_pet.json"}
