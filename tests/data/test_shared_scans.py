"""Studies share finished scans as hard links."""

import json
import os

import pytest

from dualflow.data.shared_scans import share_scans
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest, write_manifest


@pytest.fixture
def layouts(tmp_path):
    """A study with two finished scans, and an empty one."""
    source = Layout(tmp_path / "first")
    for scan in (Scan("A1", "1"), Scan("A2")):
        volume = source.derivatives / scan.folder / "anat" / "x.nii.gz"
        volume.parent.mkdir(parents=True)
        volume.write_text(scan.key)
        (volume.parent / "synth.nii.gz").write_text("of another step")
        write_manifest(source.scan_manifest(scan), step="preprocess", outputs={"source": volume}, inputs={}, config={})
    return source, Layout(tmp_path / "folds" / "second")


def test_finished_scans_are_linked_with_their_manifests(layouts):
    """The linked scans verify, occupy no further space, and bring no result of another step."""
    source, destination = layouts
    share_scans(source, destination)
    share_scans(source, destination)
    for scan in (Scan("A1", "1"), Scan("A2")):
        assert read_manifest(destination.scan_manifest(scan)) is not None
        volume = destination.derivatives / scan.folder / "anat" / "x.nii.gz"
        assert volume.samefile(source.derivatives / scan.folder / "anat" / "x.nii.gz")
        assert [file.name for file in volume.parent.iterdir()] == ["x.nii.gz"]


def test_subjects_can_be_chosen(layouts):
    """All sessions of a chosen subject are shared, and nothing of the others."""
    source, destination = layouts
    share_scans(source, destination, ["A1"])
    assert destination.scan_manifest(Scan("A1", "1")).is_file()
    assert not destination.scan_manifest(Scan("A2")).exists()


@pytest.mark.parametrize("fault", ["no hard links", "a file is missing", "a file outside the study"])
def test_what_cannot_be_linked_is_left_to_the_other_study(layouts, monkeypatch, fault):
    """Without a manifest the other study makes the scan itself."""
    source, destination = layouts
    manifest = source.scan_manifest(Scan("A2"))
    if fault == "no hard links":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    elif fault == "a file is missing":
        (source.derivatives / "sub-A2" / "anat" / "x.nii.gz").unlink()
    else:
        content = json.loads(manifest.read_text())
        content["outputs"]["source"]["path"] = "../../../elsewhere"
        manifest.write_text(json.dumps(content))
    share_scans(source, destination)
    assert not destination.scan_manifest(Scan("A2")).exists()
