"""Tracers of PET files."""

import json

import pytest

from dualflow.data.tracers import is_known_tracer, is_tracer, stated_tracer
from dualflow.modalities import MODALITIES


@pytest.mark.parametrize("label", ["FDG", "fdg", "18FFDG", "18FDG"])
def test_labels_may_begin_with_the_isotope(label):
    """Datasets write 18FFDG or 18FDG."""
    assert is_tracer(label, MODALITIES["FDG"])
    assert not is_tracer(label, MODALITIES["AV45"])
    assert is_known_tracer(label)


@pytest.mark.parametrize("label", ["FDGx", "raclopride", "18F"])
def test_other_labels_are_no_tracer_of_a_modality(label):
    """Nor is the isotope alone."""
    assert not is_known_tracer(label)


@pytest.mark.parametrize(
    ("name", "tracer"),
    [
        ("FDG", "FDG"),
        ("[18F]FDG", "FDG"),
        ("Fluorodeoxyglucose (18F)", "FDG"),
        ("2-fluoro-2-deoxy-D-glucose", "FDG"),
        ("Florbetapir F18", "AV45"),
        ("[11C]Pittsburgh Compound B", "PIB"),
        ("11C-PiB", "PIB"),
        ("AV-1451", "AV1451"),
        ("[11C]raclopride", "[11C]raclopride"),
        ("n/a", ""),
        ("unknown", ""),
        (None, ""),
    ],
)
def test_a_sidecar_names_a_tracer_in_words(tmp_path, name, tracer):
    """The label of the modality that is meant, or another tracer as it is written."""
    content = {} if name is None else {"TracerName": name}
    (tmp_path / "sub-1_pet.json").write_text(json.dumps(content))
    assert stated_tracer(tmp_path / "sub-1_pet.nii") == tracer


def test_a_damaged_sidecar_states_none(tmp_path):
    """The index goes on; preprocessing excludes the scan and says why."""
    (tmp_path / "sub-1_pet.json").write_text("{")
    assert stated_tracer(tmp_path / "sub-1_pet.nii") == ""
