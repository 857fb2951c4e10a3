"""Datasets of pairs, batches and their order."""

from itertools import islice
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from dualflow.config import StudyConfig
from dualflow.data.dataset import PairDataset, batch_positions, batches, collate, load_pairs
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import DataError, ShapeError
from dualflow.layout import Layout, Scan
from dualflow.modalities import MODALITIES

STUDY = StudyConfig(name="t", side=("age",))
PAIRS = pd.DataFrame({"scan": ["sub-1", "sub-2_ses-b"], "target": ["x.nii.gz", ""], "age": [60.0, np.nan]})
SHAPE = (4, 5, 6)


@pytest.fixture
def layout(tmp_path, write_scan) -> Layout:
    layout, rng = Layout(tmp_path), np.random.default_rng(0)
    for key, target in zip(PAIRS["scan"], PAIRS["target"], strict=True):
        volumes = {"T1w": rng.normal(size=SHAPE), "mask": rng.random(SHAPE) > 0.5}
        write_scan(layout, Scan.parse(key), volumes | ({"FDG": rng.random(SHAPE)} if target else {}))
    return layout


def toy(length: int) -> PairDataset:
    return PairDataset([{"source": torch.full((1, 1, 1, 1), float(i)), "scan": f"sub-{i}"} for i in range(length)])


def test_items_hold_the_preprocessed_volumes(layout):
    """An item has the written volumes with a channel axis; a scan without target has no target entry."""
    encoder = SideEncoder.fit(PAIRS, ["age"])
    dataset = load_pairs(layout, PAIRS, STUDY, encoder)
    first, second = dataset[0], dataset[1]
    target = nib.load(layout.on_grid(Scan("1"), MODALITIES["FDG"])).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(first["target"][0].numpy(), target)
    mask = np.asarray(nib.load(layout.mask_on_grid(Scan("1"), MODALITIES["T1w"])).dataobj) > 0
    np.testing.assert_array_equal(first["mask"][0].numpy(), mask)
    assert first["source"].shape == (2, *SHAPE)
    torch.testing.assert_close(first["source"][1], 0.1 * first["source"][0])
    assert first["source"].dtype == torch.float32
    assert "target" not in second
    assert second["side"].isnan().tolist() == [True]
    assert dataset.scans == ["sub-1", "sub-2_ses-b"]


def test_further_sources_are_channels_in_the_studys_order(layout, write_scan):
    """The main source comes first, the detail last; the error for a volume on another grid names its file."""
    scan, rng = Scan("1"), np.random.default_rng(1)
    volumes = {name: rng.random(SHAPE).astype(np.float32) for name in ("T1w", "mask", "FDG", "FLAIR", "CBF")}
    write_scan(layout, scan, volumes)
    for extra in (("FLAIR", "CBF"), ("CBF", "FLAIR")):
        study = StudyConfig(name="t", extra_sources=extra)
        item = load_pairs(layout, PAIRS[:1], study, SideEncoder())[0]
        images, detail = item["source"].numpy()[:3], item["source"].numpy()[3:]
        np.testing.assert_array_equal(images, np.stack([volumes[name] for name in ("T1w", *extra)]))
        np.testing.assert_allclose(detail, np.stack([0.1 * volumes["T1w"]] * 3), rtol=1e-6)
        assert item["target"].shape == item["mask"].shape == (1, *SHAPE)
    write_scan(layout, scan, volumes | {"CBF": np.arange(150).reshape(5, 5, 6)})
    with pytest.raises(DataError, match=r"_cbf\.nii\.gz: grid \(5, 5, 6\), expected \(4, 5, 6\)"):
        load_pairs(layout, PAIRS[:1], study, SideEncoder())


def test_volumes_on_different_grids_are_refused(layout, write_scan):
    """The error names the volume when the dataset is loaded."""
    write_scan(layout, Scan("2", "b"), {"T1w": np.arange(150).reshape(5, 5, 6), "mask": np.ones(SHAPE)})
    with pytest.raises(DataError, match=r"sub-2_ses-b.*T1w.*grid \(5, 5, 6\), expected \(4, 5, 6\)"):
        load_pairs(layout, PAIRS, STUDY, SideEncoder())


@pytest.mark.parametrize("changed", ["T1w", "FDG", "mask"])
def test_a_volume_changed_since_preprocessing_is_refused(layout, changed):
    """A valid file that preprocessing did not write is refused with the remedy."""
    scan, row = Scan("1"), MODALITIES["T1w"]
    path = layout.mask_on_grid(scan, row) if changed == "mask" else layout.on_grid(scan, MODALITIES[changed])
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata()[::-1], image.affine), path)
    with pytest.raises(DataError, match=rf"{path.name}: changed since preprocessing; run the preprocess step again"):
        load_pairs(layout, PAIRS, STUDY, SideEncoder())


def test_every_file_is_read_once(layout, monkeypatch):
    """Digest and voxels of a volume come from one read."""
    names, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: names.append(path.name) or read(path))
    load_pairs(layout, PAIRS, STUDY, SideEncoder())
    assert len(names) == len(set(names)) == 7


def test_collate_stacks_and_refuses_a_mixture(layout):
    """Tensors gain a batch axis and keys become a list; a batch cannot mix scans with and without target."""
    dataset = load_pairs(layout, PAIRS, STUDY, SideEncoder())
    batch = collate([dataset[0], dataset[0]])
    assert batch["target"].shape == (2, 1, *SHAPE)
    assert batch["side"].shape == (2, 0)
    assert batch["scan"] == ["sub-1", "sub-1"]
    with pytest.raises(DataError, match="differ in: target"):
        collate([dataset[0], dataset[1]])


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 3]), (4, [0, 1, 3, 5]), (9, [0, 1, 2, 3, 4, 5, 6])])
def test_spaced_items_are_spread_over_all(count, expected):
    """There are never more than asked for, or than there are."""
    dataset = toy(7)
    assert dataset.spaced(count).scans == [dataset.scans[position] for position in expected]


def test_scaled_spreads_leave_the_original_and_items_without_one():
    """The factor is a number or an image."""
    with_spread = {**toy(1)[0], "spread": torch.full((1, 1, 1, 1), 3.0)}
    dataset = PairDataset([with_spread, toy(2)[1]])
    assert dataset.with_scaled_spreads(2.0)[0]["spread"].item() == 6
    assert dataset.with_scaled_spreads(torch.full((1, 1, 1), 0.5))[0]["spread"].item() == 1.5
    assert dataset[0]["spread"].item() == 3
    assert "spread" not in dataset.with_scaled_spreads(2.0)[1]
    shared = toy(2).with_spread(torch.ones(1, 1, 1, 1)).with_scaled_spreads(2.0)
    assert shared[0]["spread"] is shared[1]["spread"]


def test_with_means_adds_without_changing_the_original():
    """The original dataset has no means; count and shape of the means must match."""
    dataset = toy(2)
    means = [torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)]
    assert dataset.with_means(means)[1]["mean"].item() == 1
    assert "mean" not in dataset[1]
    with pytest.raises(ShapeError, match="1 means for 2 scans"):
        dataset.with_means(means[:1])
    with pytest.raises(ShapeError, match="sub-1: mean of shape"):
        dataset.with_means([means[0], torch.zeros(1, 2, 1, 1)])
    two_sources = PairDataset([{**item, "source": torch.zeros(2, 1, 1, 1)} for item in dataset.items])
    assert two_sources.with_means(means)[0]["mean"].shape == (1, 1, 1, 1)


@pytest.mark.parametrize(("channels", "images"), [(1, 1), (2, 1), (4, 2)])
def test_a_dataset_tells_the_sizes_of_a_model(channels, images):
    """Grid, side values and images; the detail of an image is none, and a single image may lack it."""
    dataset = PairDataset([{"source": torch.zeros(channels, 2, 3, 4), "side": torch.zeros(5), "scan": "sub-1"}])
    assert (dataset.shape, dataset.side_features, dataset.source_channels) == ((2, 3, 4), 5, images)


def test_epochs_are_without_replacement():
    """Every epoch has each item once, and the order depends on epoch and seed."""
    stream = [position for step in range(10) for position in batch_positions(7, 7, step, seed=0)]
    epochs = [stream[first : first + 7] for first in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5
    assert batch_positions(50, 50, 0, seed=0) != batch_positions(50, 50, 0, seed=1)


def test_the_order_does_not_depend_on_the_batch_size():
    """Batches of 2 and of 8 follow one sequence, across epochs and beyond the number of items."""
    pairs = [position for step in range(12) for position in batch_positions(5, 2, step, seed=4)]
    octets = [position for step in range(3) for position in batch_positions(5, 8, step, seed=4)]
    assert pairs == octets


def test_resumed_batches_continue_the_sequence():
    """Batches from step 3 equal those of a run from step 0, and the total is `steps`."""
    dataset = toy(5)
    complete = [batch["scan"] for batch in batches(dataset, 2, steps=9, seed=1)]
    assert len(complete) == 9
    assert [batch["scan"] for batch in batches(dataset, 2, steps=9, seed=1, start_step=3)] == complete[3:]
    assert [batch["scan"] for batch in islice(batches(dataset, 2, 9, seed=2), 9)] != complete


def test_an_empty_dataset_is_an_error():
    """The error says that there are no scans."""
    with pytest.raises(DataError, match="no scans"):
        next(batches(toy(0), 2, 1, seed=0))
