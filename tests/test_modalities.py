"""Every modality can be a source and a target."""

from __future__ import annotations

from pathlib import Path

import pytest
from bids2table import parse_bids_entities

from dualflow.config import StudyConfig, parse_config
from dualflow.data.fingerprint import study_fingerprint
from dualflow.errors import ConfigError
from dualflow.imaging.intensity import NORMALISERS
from dualflow.layout import Layout, Scan, bids_path
from dualflow.modalities import MODALITIES, modality

SCAN = Scan("01", "a")
each_row = pytest.mark.parametrize("name", MODALITIES)


@each_row
def test_normaliser_window_and_unit_are_valid(name):
    """The normaliser exists, the window is not empty, and only PET has a tracer and the unit SUVR."""
    row = modality(name)
    assert row.normaliser in NORMALISERS
    assert row.window[0] < row.window[1]
    is_pet = row.datatype == "pet"
    assert (row.tracer == name) == (row.normaliser == "suvr") == (row.unit == "SUVR") == is_pet


@each_row
def test_file_names_are_valid_bids(name, tmp_path):
    """A BIDS parser reads folder, suffix and tracer, and a new file changes the study's fingerprint."""
    row = modality(name)
    path = bids_path(tmp_path, SCAN, row)
    entities = parse_bids_entities(path)
    assert (entities["datatype"], entities["suffix"], entities.get("trc")) == (row.datatype, row.suffix, row.tracer)
    config = parse_config({"study": {"name": "x", "bids": str(tmp_path)}})
    before = study_fingerprint(config)
    path.parent.mkdir(parents=True)
    path.touch()
    assert study_fingerprint(config) != before


def test_file_names_of_modalities_differ():
    """A study may have any two modalities."""
    layout = Layout(Path("study"))
    assert len({layout.on_grid(SCAN, row) for row in MODALITIES.values()}) == len(MODALITIES)


@each_row
def test_every_modality_can_be_source_or_target(name):
    """A modality can be the target, the main source, or a further source."""
    first, second = [choice for choice in ("T1w", "FLAIR", "FDG") if choice != name][:2]
    study = StudyConfig(name="x", source=first, extra_sources=(second,), target=name)
    assert study.sources == (first, second)
    assert study.modalities == (first, second, name)
    assert StudyConfig(name="x", source=first, extra_sources=(name,), target=second).sources == (first, name)
    assert StudyConfig(name="x", source=name, target=second).sources == (name,)


def test_an_unknown_modality_is_an_error():
    """The error lists all modalities."""
    with pytest.raises(ConfigError, match=f"unknown modality 'PIBB'; choose from: {', '.join(sorted(MODALITIES))}"):
        modality("PIBB")
