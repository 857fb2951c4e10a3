"""Finished scans are known without opening an image, and any change of what a result depends on is noticed."""

import json
import os

import pytest

from dualflow.data.quarantine import Quarantine
from dualflow.data.raw_scans import PERMANENT
from dualflow.data.scan_files import ScanFiles
from dualflow.inference.finished_scans import Finished, ScanState
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest
from dualflow.revisions import REVISIONS

SCAN = Scan("01")
EXCLUDED = Quarantine(SCAN.key, "preprocess", "no brain")


@pytest.fixture
def files(tmp_path):
    """Raw files of a scan, with a sidecar."""
    (tmp_path / "raw").mkdir()
    for name, text in (("head.nii.gz", "image"), ("head.json", '{"EchoTime": 0.01}'), ("mask.nii.gz", "mask")):
        (tmp_path / "raw" / name).write_text(text)
    return ScanFiles(tmp_path / "raw/head.nii.gz", mask=tmp_path / "raw/mask.nii.gz")


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "out", ".")


@pytest.fixture
def state(layout, files):
    """Function that returns the state of the scan with some settings."""

    def take(settings="settings", files=files):
        return ScanState.of(layout, SCAN, files, settings)

    return take


@pytest.fixture
def volume(layout, state):
    """A volume of the finished scan, whose state is recorded."""
    volume = layout.root / "sub-01_desc-synth_pet.nii.gz"
    volume.parent.mkdir(parents=True)
    volume.write_text("volume")
    volume.with_name("sub-01_desc-synth_pet.json").write_text("{}")
    write_manifest(layout.scan_manifest(SCAN), step="preprocess", outputs={}, inputs={}, config={})
    write_manifest(layout.manifest("convert/sub-01"), step="convert", outputs={"synth": volume}, inputs={}, config={})
    state().remember(None)
    return volume


def change(path):
    """Change a file but not its size."""
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))


def test_a_finished_scan_is_known(state, volume):
    """Nothing has changed, so the scan is skipped."""
    assert state().recall() == Finished(None)


@pytest.mark.parametrize("name", ["head.nii.gz", "mask.nii.gz"])
def test_a_changed_raw_file_is_noticed(state, volume, files, name):
    """A raw file with another time counts as changed, and a missing one is no error."""
    change(files.source.with_name(name))
    assert state().recall() is None
    files.source.with_name(name).unlink()
    assert state().recall() is None


def test_other_settings_and_sidecars_are_noticed(state, volume, files):
    """The settings, the contents of a sidecar, and the set of files belong to the state."""
    assert state("others").recall() is None
    assert state(files=ScanFiles(files.source)).recall() is None
    files.source.with_name("head.json").write_text('{"EchoTime": 0.02}')
    assert state().recall() is None


@pytest.mark.parametrize("step", ["preprocess", "convert"])
def test_another_revision_is_noticed(state, volume, step, monkeypatch):
    """The scan is prepared and converted by today's code."""
    monkeypatch.setitem(REVISIONS, step, -1)
    assert state().recall() is None


def test_a_scan_with_a_damaged_sidecar_is_known(state, layout, files):
    """Its exclusion is recorded too, until the sidecar is corrected."""
    sidecar = files.source.with_name("head.json")
    sidecar.write_text("{not json")
    facts = {PERMANENT: True}
    write_manifest(layout.scan_manifest(SCAN), step="preprocess", outputs={}, inputs={}, config={}, facts=facts)
    state().remember(EXCLUDED)
    assert state().recall() == Finished(EXCLUDED)
    sidecar.write_text("{}")
    assert state().recall() is None


@pytest.mark.parametrize("name", ["sub-01_desc-synth_pet.nii.gz", "sub-01_desc-synth_pet.json"])
def test_changed_results_are_noticed(state, volume, name):
    """A changed or missing volume or sidecar is not skipped."""
    change(volume.with_name(name))
    assert state().recall() is None
    volume.with_name(name).unlink()
    assert state().recall() is None


@pytest.mark.parametrize("name", ["scans/sub-01", "convert/sub-01"])
def test_removed_manifests_are_noticed(state, volume, layout, name):
    """Without one of its manifests, a scan is not finished."""
    layout.manifest(name).unlink()
    assert state().recall() is None


def test_a_damaged_record_is_ignored(state, volume, layout):
    """The scan is done again."""
    record = layout.manifest("convert/sub-01").with_suffix(".files")
    for text in ("", "[]", json.dumps({"digest": "x"})):
        record.write_text(text)
        assert state().recall() is None


@pytest.mark.parametrize(("permanent", "result"), [(True, Finished(EXCLUDED)), (False, None)])
def test_only_permanent_exclusions_are_recorded(state, layout, permanent, result):
    """A scan that failed for a reason that may pass is tried again."""
    facts = {PERMANENT: permanent}
    write_manifest(layout.scan_manifest(SCAN), step="preprocess", outputs={}, inputs={}, config={}, facts=facts)
    state().remember(EXCLUDED)
    assert state().recall() == result
