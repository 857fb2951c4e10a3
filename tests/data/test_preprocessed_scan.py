"""Preprocessed scans, verified by their manifests."""

import json

import nibabel as nib
import numpy as np
import pytest

from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.data.quarantine import FACT, Quarantine
from dualflow.errors import DataError
from dualflow.imaging.volume import read_volume
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest
from dualflow.modalities import MODALITIES

SCAN, T1W = Scan("1"), MODALITIES["T1w"]


@pytest.fixture
def layout(tmp_path, write_scan) -> Layout:
    layout, rng = Layout(tmp_path), np.random.default_rng(0)
    write_scan(layout, SCAN, {"T1w": rng.normal(size=(4, 5, 6)), "mask": rng.random((4, 5, 6)) > 0.5})
    return layout


@pytest.mark.parametrize("name", ["source", "mask"])
def test_a_volume_equals_that_of_read_volume(layout, name):
    """Voxels, type, affine and path are identical."""
    path = layout.on_grid(SCAN, T1W) if name == "source" else layout.mask_on_grid(SCAN, T1W)
    volume, expected = PreprocessedScan.from_manifest(layout, SCAN).volume(name), read_volume(path)
    assert volume.array.dtype == expected.array.dtype
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.path == expected.path


def test_the_record_is_read(layout):
    """The record is the JSON that preprocessing wrote."""
    assert PreprocessedScan.from_manifest(layout, SCAN).record() == {"scan": "sub-1"}


def test_a_changed_file_is_refused_when_it_is_read(layout):
    """Opening a scan reads only its manifest; a changed record or volume is refused when it is read."""
    record, source = layout.record(SCAN, T1W), layout.on_grid(SCAN, T1W)
    record.write_text(json.dumps({"scan": "sub-2"}))
    source.write_bytes(source.read_bytes()[:-1])
    scan = PreprocessedScan.from_manifest(layout, SCAN)
    with pytest.raises(DataError, match=rf"{record.name}: changed since preprocessing; run the preprocess step again"):
        scan.record()
    with pytest.raises(DataError, match=rf"{source.name}: changed since preprocessing; run the preprocess step again"):
        scan.volume("source")
    source.unlink()
    with pytest.raises(DataError, match=rf"{source.name}: cannot be read.*run the preprocess step again"):
        scan.volume("source")


def test_missing_manifests_and_outputs_are_named(layout):
    """The error names a scan without manifest, or lists the existing outputs."""
    with pytest.raises(DataError, match=r"sub-2: not preprocessed .*sub-2\.json.*run the preprocess step"):
        PreprocessedScan.from_manifest(layout, Scan("2"))
    with pytest.raises(DataError, match=r"has no preprocessed target \(found: mask, record, source, source_detail\);"):
        PreprocessedScan.from_manifest(layout, SCAN).volume("target")


def test_an_excluded_scan_has_its_reason(layout):
    """The reason comes from the manifest."""
    refused = Quarantine("sub-1", "preprocess", "constant image")
    manifest = layout.scan_manifest(SCAN)
    write_manifest(manifest, step="preprocess", outputs={}, inputs={}, config={}, facts={FACT: refused.fact()})
    assert PreprocessedScan.from_manifest(layout, SCAN).quarantine == refused


def test_a_moved_study_is_read(layout):
    """Paths in manifests are relative, so a study that is moved as a whole stays readable."""
    moved = Layout(layout.root.rename(layout.root.with_name("elsewhere")))
    assert (
        nib.load(moved.on_grid(SCAN, T1W)).shape
        == PreprocessedScan.from_manifest(moved, SCAN).volume("source").array.shape
    )
