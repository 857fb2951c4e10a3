"""Simulated failures of brain extraction: shape metrics tell each one from a whole brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import distance_transform_edt

from dualflow.config import ReviewConfig
from dualflow.data.quality_metrics import thresholds
from dualflow.errors import IntensityError
from dualflow.imaging.mask_qc import check_metrics, compare_with_template, mask_metrics, measure_shape
from dualflow.imaging.mni_template import coarse_template

PAD = 14


@pytest.fixture(scope="module")
def brain():
    """The padded brain mask of the template, its affine, and the world coordinates of its voxels."""
    _, mask = coarse_template()
    affine = mask.affine.copy()
    affine[:3, 3] -= PAD * affine[:3, :3].sum(axis=1)
    inside = np.pad(mask.array > 0, PAD)
    points = apply_affine(affine, np.indices(inside.shape).reshape(3, -1).T.astype(float))
    return inside, affine, points.reshape(*inside.shape, 3).transpose(3, 0, 1, 2)


def ball(world, centre, radius):
    return sum((axis - middle) ** 2 for axis, middle in zip(world, centre, strict=True)) < radius**2


def with_eyes(inside, world):
    x, y, z = world
    nerves = (np.abs(np.abs(x) - 25) < 5) & (y > 25) & (y < 60) & (np.abs(z + 35) < 5)
    return inside | nerves | ball(world, (33, 62, -38), 13) | ball(world, (-33, 62, -38), 13)


def with_neck(inside, world):
    x, y, z = world
    return inside | ((x**2 + (y + 35) ** 2 < 22**2) & (z < -40) & (z > -110))


def with_shell(inside, world):
    """Add a layer near the dura at the top of the head, and a thin bridge to it."""
    distance = distance_transform_edt(~inside, sampling=3.0)
    layer = (distance > 5) & (distance < 11) & (world[2] > 30)
    return inside | layer | ((np.abs(world[0]) < 6) & (distance < 11) & (world[2] > 30))


FAILURES = {
    "half": lambda inside, world: inside & (world[1] < -15),
    "one side": lambda inside, world: inside & (world[0] > 0),
    "a quarter missing": lambda inside, world: inside & ~((world[0] > 0) & (world[1] < -15)),
    "no cerebellum": lambda inside, world: inside & ~((world[2] < -12) & (world[1] < -35)),
    "no temporal lobe": lambda inside, world: inside & ~((world[0] > 25) & (world[2] < 0) & (world[1] > -30)),
    "cut at the top": lambda inside, world: inside & (world[2] < 50),
    "neck": with_neck,
    "eyes": with_eyes,
    "shell": with_shell,
    "skull": lambda inside, _: distance_transform_edt(~inside, sampling=3.0) < 15,
}


def flagged(inside, affine, to_template=None):
    """Return the metrics of a mask that the default review thresholds flag."""
    to_template = np.eye(4) if to_template is None else to_template
    metrics = mask_metrics(measure_shape(inside, affine), compare_with_template(inside, affine, to_template))
    bounds = thresholds(ReviewConfig())
    return {name for name in metrics if not bounds[f"mask_{name}"][0] <= metrics[name] <= bounds[f"mask_{name}"][1]}


def test_a_whole_brain_is_not_flagged(brain):
    """No metric of the template's brain is flagged, on its own grid and on permuted axes with 6 mm slices."""
    inside, affine, _ = brain
    assert flagged(inside, affine) == set()
    sliced = affine[:, [2, 0, 1, 3]] @ np.diag([2.0, 1, 1, 1])
    assert flagged(inside.transpose(2, 0, 1)[::2], sliced) == set()


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_are_flagged(brain, failure):
    """With the true alignment, a mask with a missing or an extra part crosses a threshold."""
    inside, affine, world = brain
    assert flagged(FAILURES[failure](inside, world), affine)


@pytest.mark.parametrize("failure", ["shell", "a quarter missing"])
def test_some_failures_change_the_shape(brain, failure):
    """Leaks and missing parts lower solidity or core before any alignment."""
    inside, _, world = brain
    whole, failed = (
        measure_shape(mask, np.diag([3.0, 3, 3, 1])) for mask in (inside, FAILURES[failure](inside, world))
    )
    assert min(failed.solidity / whole.solidity, failed.core / whole.core) < 0.93


def test_half_a_brain_stretched_to_the_template_is_flagged(brain):
    """An alignment that fills the template with half a brain doubles the scale along one axis."""
    inside, affine, world = brain
    stretched = np.diag([1.0, 2.0, 1.0, 1.0])
    stretched[1, 3] = 60
    assert "stretch" in flagged(inside & (world[1] < -15), affine, stretched)


def test_a_mirrored_mask_has_the_same_metrics(brain):
    """The metrics treat both hemispheres alike."""
    inside, affine, world = brain
    mask = FAILURES["no temporal lobe"](inside, world)
    mirror = np.diag([-1.0, 1, 1, 1]) @ affine
    first, second = (compare_with_template(mask, grid, np.eye(4)) for grid in (affine, mirror))
    assert first.missing == pytest.approx(second.missing, abs=0.005)
    assert first.symmetry == pytest.approx(second.symmetry, abs=0.005)


@pytest.mark.parametrize(
    ("failure", "metric"), [("one side", "missing"), ("skull", "outside"), ("a quarter missing", "missing")]
)
def test_gross_failures_are_refused(brain, failure, metric):
    """The error names the file, the metric, its value and the expected range."""
    inside, affine, world = brain
    metrics = compare_with_template(FAILURES[failure](inside, world), affine, np.eye(4))
    with pytest.raises(IntensityError, match=rf"^a\.nii: has a brain mask whose {metric} .* is 0\.\d\d, expected"):
        check_metrics(metrics, Path("a.nii"))


def test_noise_is_no_brain():
    """A mask of scattered voxels has no core and is refused for its solidity."""
    noise = np.random.default_rng(0).random((30, 30, 30)) > 0.5
    metrics = measure_shape(noise, np.diag([3.0, 3, 3, 1]))
    assert metrics.core == 0
    with pytest.raises(IntensityError, match="solidity"):
        check_metrics(metrics, Path("a.nii"))
