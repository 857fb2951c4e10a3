"""Augmentation of pairs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass

from dualflow.config import AugmentConfig
from dualflow.data.augment import Augment

NO_MOTION = {"rotation_deg": 0.0, "shift_voxels": 0.0, "scale": 0.0}


VOLUMES = ("source", "target", "mean", "spread", "mask")


@pytest.fixture(scope="module")
def item():
    """A ball with a bright half and a negative cap on a background of zero; the target is twice the source."""
    axes = torch.meshgrid(*[torch.arange(24.0) - 11.5] * 3, indexing="ij")
    mask = (sum(axis**2 for axis in axes) < 64)[None]
    source = torch.where(mask, 0.5 + 0.2 * (axes[0] > 0) - 0.8 * (axes[1] > 6), 0.0)
    return {
        "source": source, "target": 2 * source, "mean": source / 2, "spread": source / 4, "mask": mask,
        "side": torch.zeros(1), "scan": "sub-01",
    }  # fmt: skip


def test_images_and_mask_move_together(item):
    """Without intensity changes, all images stay proportional, and the mask stays aligned with them."""
    config = AugmentConfig(flip=0, translate=0, probability=1, rotation_deg=20, shift_voxels=3, bias=0, gamma=0)
    moved = Augment(config)(item, (1, 2))
    assert not torch.allclose(moved["source"], item["source"], atol=0.1)
    inside = moved["source"] != 0  # the background stays exactly 0
    torch.testing.assert_close(moved["target"][inside], 2 * moved["source"][inside])
    torch.testing.assert_close(moved["mean"][inside], moved["source"][inside] / 2)
    torch.testing.assert_close(moved["spread"][inside], moved["source"][inside] / 4)
    assert moved["mask"].dtype == torch.bool
    visible = moved["source"].abs() > 0.05
    assert (moved["mask"] & visible).sum() / moved["mask"].sum() > 0.97
    centres = [center_of_mass(volume[0].float().numpy()) for volume in (moved["mask"], visible)]
    np.testing.assert_allclose(*centres, atol=0.6)


def test_only_the_source_changes_intensity(item):
    """Intensity changes leave the target unchanged and the background at zero."""
    changed = Augment(AugmentConfig(flip=0, translate=0, probability=1, bias=0.5, gamma=0.5, **NO_MOTION))(item, (1, 2))
    assert torch.equal(changed["target"], item["target"])  # not even interpolated
    assert torch.equal(changed["mask"], item["mask"])
    inside = item["mask"]
    assert (changed["source"] - item["source"]).abs()[inside].max() > 0.02
    assert (changed["source"][~inside] == 0).all()
    assert {type(value) for name, value in changed.items() if name != "scan"} == {torch.Tensor}


def test_results_depend_on_the_seed(item):
    """Equal seeds give equal results, and scans are augmented with the given probability."""
    augment = Augment(AugmentConfig(flip=0, translate=0, probability=0.5))
    sources = [augment(item, (0, step, 0))["source"] for step in range(40)]
    repeated = [augment(item, (0, step, 0))["source"] for step in range(40)]
    assert all(torch.equal(*pair) for pair in zip(sources, repeated, strict=True))
    unchanged = sum(source is item["source"] for source in sources)
    assert 10 < unchanged < 30
    assert len({source.sum().item() for source in sources}) == 40 - unchanged + 1


def test_the_original_is_not_modified(item):
    """Augmentation returns a new item."""
    before = {name: item[name].clone() for name in ("source", "target", "mask")}
    Augment(AugmentConfig(flip=0, translate=0, probability=1))(item, (3,))
    assert all(torch.equal(item[name], value) for name, value in before.items())


def test_missing_volumes_are_not_added(item):
    """An item without mean is augmented without one."""
    plain = {name: value for name, value in item.items() if name != "mean"}
    assert Augment(AugmentConfig(flip=0, translate=0, probability=1))(plain, (3,)).keys() == plain.keys()


def test_images_end_at_the_edge_of_the_brain(item):
    """Interpolation does not leave a rim of the mean or the target outside, which no new person has."""
    moved = Augment(AugmentConfig(flip=0, translate=0, probability=1, rotation_deg=20, shift_voxels=3))(item, (1, 2))
    outside = moved["source"] == 0
    assert not moved["mean"][outside].any()
    assert not moved["target"][outside].any()


def test_all_images_of_a_scan_are_flipped_together(item):
    """Half of the scans are the mirror image, exactly; the others are unchanged, and not even copied."""
    augment, flipped = Augment(AugmentConfig(flip=0.5, translate=0)), 0
    for step in range(40):
        result = augment(item, (0, step, 0))
        if result is not item:
            flipped += 1
            assert all(torch.equal(result[name], item[name].flip(1)) for name in VOLUMES)
    assert not torch.equal(item["source"], item["source"].flip(1))
    assert 10 < flipped < 30
    assert Augment(AugmentConfig(flip=0, translate=0))(item, (0, 1, 0)) is item


def test_all_images_of_a_scan_are_translated_together_by_whole_voxels(item):
    """All shifts of up to the largest along each axis occur."""
    augment, shifts = Augment(AugmentConfig(flip=0, translate=1)), set()
    for step in range(200):
        result = augment(item, (0, step, 0))
        shift = tuple(round(float(b - a)) for a, b in zip(*map(centre, (item["mask"], result["mask"])), strict=True))
        assert all(torch.equal(result[name], item[name].roll(shift, (1, 2, 3))) for name in VOLUMES)
        shifts.add(shift)
    assert shifts == set(product((-1, 0, 1), repeat=3))


def test_no_translation_moves_the_brain_over_the_edge(item):
    """A ball that touches one edge of the grid moves away from it only, and one that fills the grid does not move."""
    touching = {name: item[name][:, 4:] if name in VOLUMES else value for name, value in item.items()}
    augment = Augment(AugmentConfig(flip=0, translate=2))
    moves = {
        round(float(centre(augment(touching, (step,))["mask"])[0] - centre(touching["mask"])[0])) for step in range(40)
    }
    assert moves == {0, 1, 2}
    full = {name: torch.ones_like(item[name]) if name in VOLUMES else value for name, value in item.items()}
    assert all(augment(full, (step,)) is full for step in range(5))


def centre(mask):
    """The centre of mass of a mask `[1, D, H, W]`."""
    return center_of_mass(mask[0].numpy())
