"""Planted failures of a brain mask: each is told from a whole brain by its shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from dualflow.config import ReviewConfig
from dualflow.data.quality_metrics import thresholds
from dualflow.errors import IntensityError
from dualflow.imaging.geometry import apply_map
from dualflow.imaging.mask_qc import check_metrics, compare_with_template, mask_metrics, measure_shape
from dualflow.imaging.mni_template import coarse_template

PAD = 14


@pytest.fixture(scope="module")
def brain():
    """The template's brain with room around it, its affine, and the world coordinates of its voxels."""
    _, mask = coarse_template()
    affine = mask.affine.copy()
    affine[:3, 3] -= PAD * affine[:3, :3].sum(axis=1)
    inside = np.pad(mask.array > 0, PAD)
    points = apply_map(affine, np.indices(inside.shape).reshape(3, -1).T.astype(float))
    return inside, affine, points.reshape(*inside.shape, 3).transpose(3, 0, 1, 2)


def ball(world, centre, radius):
    return sum((axis - at) ** 2 for axis, at in zip(world, centre, strict=True)) < radius**2


def with_eyes(inside, world):
    x, y, z = world
    nerves = (np.abs(np.abs(x) - 25) < 5) & (y > 25) & (y < 60) & (np.abs(z + 35) < 5)
    return inside | nerves | ball(world, (33, 62, -38), 13) | ball(world, (-33, 62, -38), 13)


def with_neck(inside, world):
    x, y, z = world
    return inside | ((x**2 + (y + 35) ** 2 < 22**2) & (z < -40) & (z > -110))


def with_shell(inside, world):
    """A layer beside the dura, over the top of the head, that a thin bridge joins to the brain."""
    out = distance_transform_edt(~inside, sampling=3.0)
    return inside | ((out > 5) & (out < 11) & (world[2] > 30)) | ((np.abs(world[0]) < 6) & (out < 11) & (world[2] > 30))


FAILURES = {
    "half of it": lambda inside, world: inside & (world[1] < -15),
    "one side": lambda inside, world: inside & (world[0] > 0),
    "a quarter less": lambda inside, world: inside & ~((world[0] > 0) & (world[1] < -15)),
    "no cerebellum": lambda inside, world: inside & ~((world[2] < -12) & (world[1] < -35)),
    "no temporal lobe": lambda inside, world: inside & ~((world[0] > 25) & (world[2] < 0) & (world[1] > -30)),
    "cut at the top": lambda inside, world: inside & (world[2] < 50),
    "neck": with_neck,
    "eyes": with_eyes,
    "shell": with_shell,
    "skull": lambda inside, _: distance_transform_edt(~inside, sampling=3.0) < 15,
}


def odd(inside, affine, to_template=None):
    """Figures of a mask that the default thresholds of review flag."""
    to_template = np.eye(4) if to_template is None else to_template
    metrics = mask_metrics(measure_shape(inside, affine), compare_with_template(inside, affine, to_template))
    bounds = thresholds(ReviewConfig())
    return {name for name in metrics if not bounds[f"mask_{name}"][0] <= metrics[name] <= bounds[f"mask_{name}"][1]}


def test_a_whole_brain_is_not_odd(brain):
    """Nothing of the template's own brain is flagged, on its grid or one with slices of 6 mm in another order."""
    inside, affine, _ = brain
    assert odd(inside, affine) == set()
    sliced = affine[:, [2, 0, 1, 3]] @ np.diag([2.0, 1, 1, 1])
    assert odd(inside.transpose(2, 0, 1)[::2], sliced) == set()


@pytest.mark.parametrize("failure", FAILURES)
def test_planted_failures_are_flagged(brain, failure):
    """Aligned as it truly lies, every mask that misses a part or has taken one in crosses a threshold."""
    inside, affine, world = brain
    assert odd(FAILURES[failure](inside, world), affine)


@pytest.mark.parametrize("failure", ["shell", "a quarter less"])
def test_some_failures_show_before_any_alignment(brain, failure):
    """Leaks and missing pieces change how round and how thick a mask is."""
    inside, _, world = brain
    before, after = (
        measure_shape(mask, np.diag([3.0, 3, 3, 1])) for mask in (inside, FAILURES[failure](inside, world))
    )
    assert min(after.solidity / before.solidity, after.core / before.core) < 0.93


def test_half_a_brain_stretched_to_a_whole_one_is_flagged(brain):
    """An alignment that fills the template with a half needs twice the scale along one axis."""
    inside, affine, world = brain
    stretched = np.diag([1.0, 2.0, 1.0, 1.0])
    stretched[1, 3] = 60
    assert "stretch" in odd(inside & (world[1] < -15), affine, stretched)


def test_a_mirrored_mask_has_the_same_figures(brain):
    """No figure prefers a side."""
    inside, affine, world = brain
    mask = FAILURES["no temporal lobe"](inside, world)
    mirror = np.diag([-1.0, 1, 1, 1]) @ affine
    first, second = (compare_with_template(mask, grid, np.eye(4)) for grid in (affine, mirror))
    assert first.missing == pytest.approx(second.missing, abs=0.005)
    assert first.symmetry == pytest.approx(second.symmetry, abs=0.005)


@pytest.mark.parametrize(
    ("failure", "figure"), [("one side", "missing"), ("skull", "outside"), ("a quarter less", "missing")]
)
def test_gross_failures_are_refused(brain, failure, figure):
    """The error names the file, the figure, its value and what to do."""
    inside, affine, world = brain
    metrics = compare_with_template(FAILURES[failure](inside, world), affine, np.eye(4))
    with pytest.raises(IntensityError, match=rf"^a\.nii: has a brain mask whose {figure} .* is 0\.\d\d, expected"):
        check_metrics(metrics, Path("a.nii"))


def test_dust_is_no_brain():
    """A mask without any solid part has no core, and is refused before it is aligned."""
    dust = np.random.default_rng(0).random((30, 30, 30)) > 0.5
    metrics = measure_shape(dust, np.diag([3.0, 3, 3, 1]))
    assert metrics.core == 0
    with pytest.raises(IntensityError, match="solidity"):
        check_metrics(metrics, Path("a.nii"))
