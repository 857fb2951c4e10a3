"""Voxels that a target does not show."""

import pytest
import torch
from lesion_people import SHAPE as GRID
from lesion_people import people

from dualflow.baselines.linear_models import LocalLinearBaseline, MeanImage, StackedBaseline
from dualflow.baselines.residuals import ResidualScans, spread_map
from dualflow.data.dataset import PairDataset, collate
from dualflow.data.unseen_voxels import mean_of_shown, unseen, with_unseen_filled
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.imaging.intensity import INSIDE
from dualflow.training.calibrate import sampled_moments
from dualflow.training.fit_spread import fit_spread
from dualflow.training.fit_whitening import fit_whitening
from dualflow.training.refit_spread import voxel_sums

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
    assert [int(item["shown"].sum()) for item in filled.items] == [7, 6]


FOLDS = [index % 4 for index in range(12)]


def cut(level):
    """Twelve people of whom every second one has a target that lacks the lower half, filled with a number."""
    items = people(12)
    lower = torch.zeros(1, *GRID, dtype=torch.bool)
    lower[:, : GRID[0] // 2] = True
    for item in items[::2]:
        item |= {"target": torch.where(lower, level, item["target"]), "shown": item["mask"] & ~lower}
    return PairDataset(items)


def spread_of(pairs):
    """The map of a spread, and the spread of each person."""
    spec = preset("dualflow", mean="local_linear", levels=2, steps=(1, 1), hidden=(4, 4), low_rank=0)
    torch.manual_seed(0)
    flow = DualFlow(spec, shape=GRID, side_features=1)
    return flow, fit_spread(flow, pairs, FOLDS)


def fitted_flow(pairs):
    """Spread and whitening, the sums of its refit, and the errors by which voxels are calibrated."""
    flow, pairs = spread_of(pairs)
    fit_whitening(flow, pairs)
    sums = voxel_sums(flow, pairs, FOLDS)
    errors = sampled_moments(flow, pairs, torch.zeros(1, *GRID)).voxels
    return [flow.spread.image, flow.whitening.shares, sums.squares, sums.counts, errors]


def baseline(kind):
    """A fit that returns the state of a baseline."""

    def fit(pairs):
        model = kind(GRID, 1)
        model.fit(pairs, FOLDS)
        return [value for value in model.state_dict().values() if value.is_floating_point()]

    return fit


@pytest.mark.parametrize(
    "fit",
    [
        baseline(MeanImage),
        baseline(LocalLinearBaseline),
        baseline(StackedBaseline),
        lambda pairs: [spread_map(ResidualScans(pairs, [item["mean"] for item in pairs.items], FOLDS))],
        fitted_flow,
    ],
    ids=["mean image", "local linear", "stacked", "residuals", "flow"],
)
def test_what_fills_hidden_voxels_does_not_enter_fits_in_closed_form(fit):
    """It is no measurement: errors there would be too small or too large, and so would intervals."""
    for first, second in zip(fit(cut(0.5)), fit(cut(3.0)), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_scans_that_are_cut_and_whole_ones_make_a_batch():
    """Networks and flows see the filled target."""
    assert "shown" not in collate(cut(0.5).items)
