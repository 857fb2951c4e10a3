"""Flags that follow from the record of a scan."""

import pytest

from dualflow.config import StudyConfig
from dualflow.data.quality_notes import record_notes, usual_versions

STUDY = StudyConfig(name="x")
DYNAMIC = {"frames": 3, "window_s": None, "times_after": "injection", "acquired_s": [0.0, 5400.0], "notes": []}


def record(pet=None, file="sub-1_trc-FDG_pet.nii.gz", **versions):
    target = {"file": file, "pet": pet or {"frames": 1, "notes": []}}
    images = {"source": {"file": "sub-1_T1w.nii.gz"}, "target": target, "extra_sources": {}}
    return images | {"brain_mask": {"made_by": "deepbet"}, "versions": versions}


def notes(scan, others=()):
    return record_notes(scan, STUDY, usual_versions([scan, *others]))


def test_a_series_from_the_injection_on_is_flagged():
    """Without a window its mean holds the first passage of the tracer, which a static image of the study does not."""
    (note,) = notes(record(DYNAMIC))
    assert note.startswith("target: its frames of 0 to 5400 s after injection are averaged")
    assert note.endswith("set preprocess.pet_window_s")


@pytest.mark.parametrize(
    "changed",
    [{"acquired_s": [1800.0, 3600.0]}, {"window_s": [3000.0, 4200.0]}, {"times_after": "scan start"}, {"frames": 1}],
)
def test_other_series_are_not(changed):
    """Late frames, a window, unknown injection, and static images."""
    assert notes(record(DYNAMIC | changed)) == []


@pytest.mark.parametrize("label", ["nac", "nacstat", "NACdyn"])
def test_an_image_without_attenuation_correction_is_flagged(label):
    """Its rim is too bright, which no reference region corrects."""
    (note,) = notes(record(file=f"sub-1_trc-FDG_rec-{label}_pet.nii.gz"))
    assert "without correction of attenuation" in note
    assert notes(record(file="sub-1_trc-FDG_rec-acstat_pet.nii.gz")) == []


def test_a_scan_of_another_version_of_a_library_is_flagged():
    """People who join after an upgrade would have masks and registrations of their own."""
    usual = [record(deepbet="1.0", dualflow="1")] * 2
    assert notes(usual[0], usual[1:]) == []
    (note,) = notes(record(deepbet="1.1", dualflow="2"), usual)
    assert note == "prepared with deepbet 1.1, most scans with 1.0: remove its manifest to prepare it again"
