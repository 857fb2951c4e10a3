"""Usable pairs of a study and their splits."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from dualflow.config import parse_config
from dualflow.data.quarantine import FACT, Quarantine
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import learning_pairs, load_split, usable_pairs
from dualflow.data.tsv import table_text
from dualflow.errors import DataError
from dualflow.layout import Scan
from dualflow.modalities import MODALITIES

SHAPE = (4, 4, 4)
SPLITS = {"1": "train", "2": "train", "3": "validation", "4": "test"}


@pytest.fixture
def config(tmp_path, write_scan):
    """A study of four preprocessed scans."""
    config = parse_config({"study": {"name": "t", "results": str(tmp_path), "side": ["age"]}})
    rng = np.random.default_rng(0)
    rows = [
        (f"sub-{label}", label, None, "t1w", "fdg", split, 60.0 + i) for i, (label, split) in enumerate(SPLITS.items())
    ]
    pairs = pd.DataFrame(rows, columns=["scan", "subject", "session", "source", "target", "split", "age"])
    config.layout.pairs.parent.mkdir(parents=True)
    config.layout.pairs.write_text(table_text(pairs))
    for label in SPLITS:
        write_scan(
            config.layout,
            Scan(label),
            {"T1w": rng.normal(size=SHAPE), "mask": np.ones(SHAPE), "FDG": rng.random(SHAPE)},
        )
    return config


def test_usable_pairs_reads_only_manifests(config, monkeypatch):
    """No volume is hashed, even if it has changed."""
    source = config.layout.on_grid(Scan("1"), MODALITIES["T1w"])
    source.write_bytes(source.read_bytes()[:-1])
    monkeypatch.setattr(hashlib, "sha256", lambda *_: pytest.fail("hashed"))
    assert usable_pairs(config)["scan"].tolist() == [f"sub-{label}" for label in SPLITS]


def test_a_changed_volume_is_refused_when_its_split_is_loaded(config):
    """Other splits are not verified."""
    source = config.layout.on_grid(Scan("4"), MODALITIES["T1w"])
    source.write_bytes(source.read_bytes()[:-1])
    pairs, encoder, training, validation = learning_pairs(config)
    assert (training.scans, validation.scans) == (["sub-1", "sub-2"], ["sub-3"])
    with pytest.raises(DataError, match="changed since preprocessing; run the preprocess step again"):
        load_split(config, pairs, "test", encoder)


def test_excluded_scans_are_not_usable(config, write_scan):
    """It is an error if preprocessing excluded all scans."""
    for label in SPLITS:
        fact = Quarantine(f"sub-{label}", "preprocess", "constant").fact()
        write_scan(
            config.layout, Scan(label), {"T1w": np.arange(64).reshape(SHAPE), "mask": np.ones(SHAPE)}, **{FACT: fact}
        )
        if label == "1":
            assert usable_pairs(config)["scan"].tolist() == ["sub-2", "sub-3", "sub-4"]
    with pytest.raises(DataError, match=r"no usable scan is left; .*quarantine\.tsv lists the reasons"):
        usable_pairs(config)


def test_a_scan_that_is_not_preprocessed_is_an_error(config):
    """The error names the scan and the step to run."""
    config.layout.scan_manifest(Scan("2")).unlink()
    with pytest.raises(DataError, match=r"sub-2: not preprocessed .*; run the preprocess step"):
        usable_pairs(config)


def test_side_information_is_fitted_on_training_scans(config):
    """Mean and standard deviation are those of the training scans."""
    _, encoder, training, _ = learning_pairs(config)
    assert isinstance(encoder, SideEncoder)
    assert encoder.columns[0].mean == 60.5
    assert [round(float(item["side"]), 3) for item in training.items] == [-1.0, 1.0]
