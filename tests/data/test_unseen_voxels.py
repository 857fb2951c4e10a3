"""Voxels that a target does not show."""

import torch

from dualflow.data.dataset import PairDataset
from dualflow.data.unseen_voxels import mean_of_shown, unseen, with_unseen_filled
from dualflow.imaging.intensity import INSIDE

SHAPE = (1, 2, 2, 2)


def scan(level, hidden=(), outside=()):
    """A scan of one level of uptake, with hidden voxels and voxels outside the mask."""
    mask, target = torch.ones(SHAPE, dtype=torch.bool), torch.full(SHAPE, float(level))
    target.view(-1)[list(hidden)] = float(INSIDE)
    for volume in (mask, target):
        volume.view(-1)[list(outside)] = 0
    return {"scan": f"sub-{level}", "target": target, "mask": mask}


def test_hidden_voxels_take_the_mean_of_those_who_show_them():
    """Voxels outside the mask stay 0, and a target that shows all is not copied."""
    dataset = PairDataset([scan(1), scan(2, hidden=[0]), scan(3, outside=[1]), scan(5, hidden=[0, 2])])
    filled = with_unseen_filled(dataset, mean_of_shown(dataset))
    assert filled.items[0] is dataset.items[0]
    assert filled[1]["target"].flatten().tolist() == [2] * 8
    assert filled[2]["target"].flatten().tolist() == [3, 0, *[3] * 6]
    assert filled[3]["target"].flatten().tolist() == [2, 5, 2, *[5] * 5]
    assert not any(unseen(item).any() for item in filled.items)


def test_a_voxel_that_nobody_shows_stays():
    """There is nothing to take."""
    dataset = PairDataset([scan(1, hidden=[0]), scan(2, hidden=[0], outside=[1])])
    filled = with_unseen_filled(dataset, mean_of_shown(dataset))
    assert [bool(unseen(item).view(-1)[0]) for item in filled.items] == [True, True]
    assert all(item["target"].isfinite().all() for item in filled.items)
