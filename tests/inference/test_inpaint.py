"""Completion of a target with missing voxels."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import batch, build, trained

from dualflow.errors import ConfigError, InputError, ShapeError
from dualflow.inference.edit import Subject
from dualflow.inference.inpaint import interpolate_missing

GROUP = pytest.mark.xdist_group("puflow")


@GROUP
@pytest.mark.slow
def test_missing_slices_are_filled():
    """Known voxels stay, missing ones are finite and near the truth, and NaN stands for missing values."""
    flow, (target, source, side) = trained("puflow"), batch(32, seed=7)
    known = torch.ones(32, 1, *flow.shape, dtype=torch.bool)
    known[:, :, 6:] = False
    subject = Subject(torch.where(known, target, torch.nan), source, side)
    filled = interpolate_missing(flow, subject, known)
    assert torch.equal(filled[known], target[known])
    error = (filled - target).abs()[~known].mean()
    assert error < 0.5 * (target - target.mean()).abs()[~known].mean()
    assert torch.equal(filled, interpolate_missing(flow, subject._replace(target=target), known))


@GROUP
@pytest.mark.slow
def test_background_noise_replaces_voxels_outside_the_mask():
    """The fill inside the mask does not depend on the target outside of it."""
    flow, (target, source, side) = trained("puflow"), batch()
    mask = torch.zeros_like(target, dtype=torch.bool)
    mask[:, :, :, 1:3] = True
    known = torch.ones(3, 1, *flow.shape, dtype=torch.bool)
    known[:, :, 6:] = False
    first, second = (
        interpolate_missing(flow, Subject(image, source, side, mask), known)
        for image in (target, torch.where(mask, target, 7.0))
    )
    assert torch.equal(first, second)


def test_errors_name_the_remedy():
    """A flow without interpolation, and a map of another size or type, are refused."""
    target, source, side = batch()
    known = torch.ones(3, 1, 8, 4, 4, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"no interpolation; train it with model.options: \{interpolation_l1: 1.0, "):
        interpolate_missing(build("dualflow").eval(), Subject(target, source, side), known)
    flow = build("puflow").eval()
    for wrong in (known[:2], known.double()):
        with pytest.raises(ShapeError, match="give one map of measured voxels per subject"):
            interpolate_missing(flow, Subject(target, source, side), wrong)
    with pytest.raises(InputError, match="target holds"):
        interpolate_missing(flow, Subject(target * torch.nan, source, side), known)
