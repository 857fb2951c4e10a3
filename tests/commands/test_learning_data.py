"""Digests of what models learn from: what changes them, and what does not."""

from dataclasses import replace

import pytest
import torch
from learning_phantoms import learning_data

from dualflow.commands.learning_data import _require_revision, fingerprint_of
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.data.unseen_voxels import mean_of_shown, unseen
from dualflow.errors import DataError
from dualflow.imaging.intensity import INSIDE
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest
from dualflow.revisions import REVISIONS


@pytest.fixture
def fingerprint(phantoms, held_out, card):
    """Return the fingerprint of a training on the phantoms, with changed settings or data."""

    def compute(values=None, name="dualflow", training=phantoms, validation=held_out, manifests="same"):
        config = parse_config({"study": {"name": "tiny"}, **(values or {})})
        return fingerprint_of(config, name, learning_data(card, training, validation, manifests))

    return compute


@pytest.mark.parametrize(
    "values",
    [
        {"study": {"name": "tiny", "results": "elsewhere"}},
        {"train": {"seeds": [0, 1]}},
        {"train": {"memory": "reversible", "threads": 2, "max_skipped": 20, "max_round_trip": 0.1}},
        {"baselines": {"models": ["unet"]}},
        {"baselines": {"steps": 5, "training": {"unet": {"learning_rate": 0.1}}}},
        {"evaluate": {"bootstrap": 100}},
        {"extra_models": {"other": {"preset": "dual_glow"}}},
    ],
)
def test_unrelated_settings_do_not_change_the_fingerprint(fingerprint, values):
    """The fingerprint ignores other models, seeds, folders, evaluation settings, and cures of a failed training."""
    assert fingerprint(values) == fingerprint()


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"learning_rate": 1e-3}},
        {"train": {"steps": 700}},
        {"train": {"precision": "float32"}},
        {"model": {"options": {"noise": 0.02}}},
    ],
)
def test_training_settings_change_the_fingerprint(fingerprint, values):
    """Learning rate, steps, precision, and options of the flow that change no tensor shape."""
    assert fingerprint(values) != fingerprint()


def test_a_revision_of_trainings_changes_the_fingerprint(fingerprint, monkeypatch):
    """A training of earlier code is neither kept nor resumed."""
    before = fingerprint()
    monkeypatch.setitem(REVISIONS, "train", -1)
    assert fingerprint() != before


def test_scans_of_another_preprocessing_are_refused(tmp_path, monkeypatch):
    """A training by hand after an update would learn from scans that conversion prepares otherwise."""
    layout, scan = Layout(tmp_path / "x"), Scan("1")
    write_manifest(layout.scan_manifest(scan), step="preprocess", outputs={}, inputs={}, config={})
    _require_revision(layout, [scan.key])
    monkeypatch.setitem(REVISIONS, "preprocess", -1)
    with pytest.raises(DataError, match=r"sub-1: was made by revision .* of the preprocessing, expected -1"):
        _require_revision(layout, [scan.key])


def test_data_splits_and_side_values_change_the_fingerprint(fingerprint, phantoms, held_out):
    """Changed preprocessing, a changed age, or a subject moved to the other split."""
    aged = PairDataset([{**item, "side": item["side"] + 1} for item in phantoms.items])
    moved = PairDataset(phantoms.items[:-1]), PairDataset([phantoms.items[-1], *held_out.items])
    changed = [
        fingerprint(manifests="other"),
        fingerprint(training=aged),
        fingerprint(training=moved[0], validation=moved[1]),
        fingerprint(name="unet"),
    ]
    assert len({fingerprint(), *changed}) == 5
    assert torch.isnan(phantoms[1]["side"]).all(), "the fingerprint must accept unknown values"


def test_the_digest_tells_splits_side_values_and_units(phantoms, held_out, card):
    """A model of other ones is not known to leave a scan out; standardised values alone hide a change of units."""
    moved = PairDataset(phantoms.items[:-1]), PairDataset([phantoms.items[-1], *held_out.items])
    aged = PairDataset([{**item, "side": item["side"] + 1} for item in phantoms.items])
    first, *others = card.side.columns
    months = replace(first, mean=12 * first.mean, sd=12 * first.sd, low=12 * first.low, high=12 * first.high)
    data = learning_data(card, phantoms, held_out)
    changed = [
        learning_data(card, *moved),
        learning_data(card, aged, held_out),
        replace(data, encoder=replace(card.side, columns=(months, *others))),
    ]
    assert len({one.digest for one in [data, *changed]}) == 4


def test_models_learn_from_filled_targets_and_measurements_are_of_the_files(phantoms, held_out, card):
    """Where a PET is not shown, a training takes other people's mean; the scans that are measured stay as they are."""
    cut = [{**item, "target": item["target"].clone()} for item in phantoms.items]
    hidden = cut[0]["mask"].clone()
    hidden[..., hidden.shape[-1] // 2 :] = False
    cut[0]["target"][hidden] = float(INSIDE)
    data = learning_data(card, PairDataset(cut), held_out)
    training, validation = data.filled
    assert unseen(data.training[0]).sum() == hidden.sum() > 0
    assert not any(unseen(item).any() for item in [*training.items, *validation.items])
    mean = mean_of_shown(data.training)
    assert torch.equal(training[0]["target"][hidden], mean[hidden])
    assert all(item is same for item, same in zip(training.items[1:], cut[1:], strict=True))
