"""Every row of MODALITIES is a modality that the rest of the program can use without knowing it."""

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
def test_its_treatment_is_complete(name):
    """Its normaliser exists, its window is not empty, and PET - nothing else - has its name as tracer and SUVR."""
    row = modality(name)
    assert row.normaliser in NORMALISERS
    assert row.window[0] < row.window[1]
    is_pet = row.datatype == "pet"
    assert (row.tracer == name) == (row.normaliser == "suvr") == (row.unit == "SUVR") == is_pet


@each_row
def test_its_files_are_named_as_the_index_reads_names(name, tmp_path):
    """A reader of BIDS names finds folder, suffix and tracer, and a file that comes changes the study's listing."""
    row = modality(name)
    path = bids_path(tmp_path, SCAN, row)
    found = parse_bids_entities(path)
    assert (found["datatype"], found["suffix"], found.get("trc")) == (row.datatype, row.suffix, row.tracer)
    config = parse_config({"study": {"name": "x", "bids": str(tmp_path)}})
    before = study_fingerprint(config)
    path.parent.mkdir(parents=True)
    path.touch()
    assert study_fingerprint(config) != before


def test_no_two_rows_share_a_file():
    """Any two of them may be in one study."""
    layout = Layout(Path("study"))
    assert len({layout.on_grid(SCAN, row) for row in MODALITIES.values()}) == len(MODALITIES)


@each_row
def test_it_may_be_learnt_and_be_learnt_from(name):
    """A study names it as target, as source, and as one more source, by name alone."""
    first, second = [other for other in ("T1w", "FLAIR", "FDG") if other != name][:2]
    study = StudyConfig(name="x", source=first, extra_sources=(second,), target=name)
    assert study.sources == (first, second)
    assert study.modalities == (first, second, name)
    assert StudyConfig(name="x", source=first, extra_sources=(name,), target=second).sources == (first, name)
    assert StudyConfig(name="x", source=name, target=second).sources == (name,)


def test_an_unknown_name_is_told_with_the_choices():
    """The message lists what there is."""
    with pytest.raises(ConfigError, match="unknown modality 'PIBB'; choose from: AV1451, AV45, CBF, CT"):
        modality("PIBB")
