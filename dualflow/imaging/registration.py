"""Linear registration: target to source by a rigid map, source to template by an affine one.

Both maximise Mattes' mutual information (Mattes et al., IEEE TMI 2003) over a coarse-to-fine pyramid, on fixed samples
and one thread, so that equal inputs give equal maps. Heads lie tilted and off-centre, and the metric alone does not
tell a local maximum from the right one; so many turned starts are scored on coarse copies by the same metric, and the
optimiser sets out from the best. Where the result is still poor the runners-up are tried as well, and the scans as they
came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import TypeAlias

import nilearn.datasets
import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from dualflow.errors import RegistrationError
from dualflow.imaging.geometry import (
    Affine,
    BoolArray,
    Points,
    Volume,
    apply_map,
    from_transform,
    resample,
    shrink,
)

Transform: TypeAlias = sitk.Euler3DTransform | sitk.AffineTransform
Turn: TypeAlias = tuple[float, float, float]
Measure: TypeAlias = Callable[[Transform], float]

# Registration sees copies of about this spacing: it places them to a small fraction of a voxel.
WORKING_MM = 2.5
# Starts are scored on copies of this spacing, each in some milliseconds.
COARSE_MM = 8.0
# Turns of the starts in degrees: pitch, in which heads differ most, then roll and yaw. The optimiser covers 20 of them.
# None comes first.
TURNS = tuple(
    sorted(product((-45, -30, -15, 0, 15, 30, 45), (-30, 0, 30), (-30, 0, 30)), key=lambda turn: sum(map(abs, turn)))
)
TEMPLATE_MM = 3
# Voxels of the template beyond its brain that the metric looks at.
RIM = 2
SEED = 1
BINS = 32
SHRINK = (4, 2, 1)
SMOOTHING_MM = (6.0, 3.0, 0.0)
SAMPLED = (1.0, 1.0, 0.3)
# Mutual information in nats that aligned scans of a brain exceed; below it the next best starts are tried too.
POOR_NATS = 0.15
RUNNERS_UP = 2
# Below this, more than twice what unrelated noise scores on these samples, two scans have nothing in common.
MIN_NATS = 0.05
# Share of the source's brain that a target must show; bounds that an aligned brain keeps.
MIN_COVERAGE = 0.9
# A start or result that shows less of it counts as one that shares nothing: few samples always seem to share much.
LEAST_SEEN = 0.25
VOLUME_RATIO = (0.4, 2.5)
MIN_DICE = 0.85


@dataclass(frozen=True)
class Alignment:
    """A points map and how good it is.

    Attributes:
        points_map: world of the moving scan to world of what it was aligned with.
        mutual_information: Mattes' estimate in nats; higher is better.
        displacement_mm: mean distance by which it moves the points of the brain.
        overlap: rigid: share of the brain that the target shows; affine: Dice with the template's brain.
        before: mutual information and overlap by the scanner's coordinates alone; None where nothing was moved by it,
            and for the template, whose coordinates are no scanner's.
    """

    points_map: Affine
    mutual_information: float
    displacement_mm: float
    overlap: float
    before: tuple[float, float] | None = None


@cache
def template() -> tuple[Volume, Volume]:
    """The skull-stripped ICBM 2009a T1 template and its brain mask, from nilearn's own files."""
    image = nilearn.datasets.load_mni152_template(resolution=TEMPLATE_MM)
    mask = nilearn.datasets.load_mni152_brain_mask(resolution=TEMPLATE_MM)
    first, second = (
        Volume(np.asarray(one.dataobj, dtype=np.float32), np.asarray(one.affine, dtype=np.float64))
        for one in (image, mask)
    )
    return first, second


def register_rigid(target: Volume, source: Volume, source_mask: BoolArray) -> Alignment:
    """Rigid points map from `target` to `source`, by what they share within the source's brain.

    Raises:
        RegistrationError: aligned, the target does not show the brain.
    """
    mask = Volume(source_mask.astype(np.float32), source.affine)
    centre = _mass_centre(mask)
    # By the scanner's coordinates, by the head's centre of mass, by the middle of the field of view.
    bright = Volume(np.maximum(target.array - np.float32(target.array.mean()), 0), target.affine)
    middle = apply_map(target.affine, (np.array([target.array.shape]) - 1) / 2)[0]
    ends = (centre, _mass_centre(bright), middle)
    starts = [_rigid_start(centre, end, turn) for end, turn in product(ends, TURNS)]
    measure = _measure(source, mask, target)
    transform, information = _search(source, mask, target, starts, measure)
    to_target = np.eye(4) if transform is starts[0] else from_transform(transform)
    before = measure(sitk.Euler3DTransform()), _seen(_points(mask), np.eye(4), target)
    return replace(_accepted(to_target, information, target, source, mask), before=before)


def trust_alignment(target: Volume, source: Volume, source_mask: BoolArray) -> Alignment:
    """The identity, for a `target` that is said to lie in the space of `source` already, measured like a registration.

    Raises:
        RegistrationError: they have nothing in common there, or the target does not show the brain.
    """
    mask = Volume(source_mask.astype(np.float32), source.affine)
    information = _measure(source, mask, target)(sitk.Euler3DTransform())
    return _accepted(np.eye(4), information, target, source, mask)


def _accepted(to_target: Affine, information: float, target: Volume, source: Volume, mask: Volume) -> Alignment:
    """The alignment that maps the source's world by `to_target`, if the images fit; `mask` is the source's brain."""
    points = _points(mask)
    moved = apply_map(to_target, points)
    seen = _seen(points, to_target, target)
    if information < MIN_NATS:
        raise RegistrationError(
            f"{target.path}: aligned with {source.path.name} they share {information:.3f} nats, expected at least "
            f"{MIN_NATS}; check that it is a scan of the same head"
        )
    if seen < MIN_COVERAGE:
        raise RegistrationError(
            f"{target.path}: aligned with {source.path.name} it shows {seen:.0%} of the brain, expected at least "
            f"{MIN_COVERAGE:.0%}; check that both are of one person and that its field of view holds the brain"
        )
    return Alignment(np.linalg.inv(to_target), information, _mean_distance(moved, points), seen)


def register_affine(source: Volume, source_mask: BoolArray) -> Alignment:
    """Affine points map from `source` to the template, both skull-stripped.

    Raises:
        RegistrationError: aligned, the brain does not fill the template's.
    """
    image, template_mask = template()
    brain = Volume(np.where(source_mask, source.array, 0).astype(np.float32), source.affine)
    mask = Volume(source_mask.astype(np.float32), source.affine)
    # The rim outside the template's brain lets the metric see where the source's brain ends.
    rim = Volume(binary_dilation(template_mask.array > 0, iterations=RIM).astype(np.float32), template_mask.affine)
    here, there = _points(template_mask), _points(mask)
    starts = [_affine_start(here, there, turn) for turn in TURNS]
    transform, information = _search(image, rim, brain, starts, _measure(image, rim, brain))
    to_source = from_transform(transform)
    i, j, k = template_mask.array.shape
    mapped, expected = resample(mask, template_mask.affine, (i, j, k), to_source) > 0.5, template_mask.array > 0.5
    dice = 2 * float((mapped & expected).sum()) / float(mapped.sum() + expected.sum())
    ratio = abs(float(np.linalg.det(to_source[:3, :3])))
    if not VOLUME_RATIO[0] <= ratio <= VOLUME_RATIO[1] or dice < MIN_DICE:
        raise RegistrationError(
            f"{source.path}: its brain has {ratio:.2f} times the template's volume and overlaps it, aligned, by Dice "
            f"{dice:.2f}, expected {VOLUME_RATIO[0]} to {VOLUME_RATIO[1]} times and Dice {MIN_DICE} or more; check the "
            "scan's orientation, voxel size and field of view"
        )
    points = _points(template_mask)
    return Alignment(np.linalg.inv(to_source), information, _mean_distance(apply_map(to_source, points), points), dice)


def _search(
    fixed: Volume, region: Volume, moving: Volume, starts: Sequence[Transform], measure: Measure
) -> tuple[Transform, float]:
    """Return the best transform found, fixed to moving, and its mutual information within the fixed `region`.

    It is the first of the `starts` itself where no other is better: scans that lie aligned are not moved for nothing.
    """
    one, other = shrink(fixed, WORKING_MM), shrink(moving, WORKING_MM)
    method = mutual_information(shrink(region, WORKING_MM) > 0.5)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=100, relaxationFactor=0.6
    )

    def climb(start: Transform, coarsest: int = 0) -> tuple[Transform, float]:
        found = copy(start)
        method.SetShrinkFactorsPerLevel(SHRINK[coarsest:])
        method.SetSmoothingSigmasPerLevel(SMOOTHING_MM[coarsest:])
        method.SetMetricSamplingPercentagePerLevel(SAMPLED[coarsest:], SEED)
        method.SetInitialTransform(found, inPlace=True)
        try:
            method.Execute(one, other)
        except RuntimeError:  # it has left the image, or its start lies beside it
            return found, 0.0
        return found, measure(found)

    ranked = _rank(fixed, region, moving, starts)
    still, climbed = (starts[0], measure(starts[0])), climb(ranked[0])
    tries = [still, climbed]
    if climbed[1] < max(POOR_NATS, still[1]):
        others = [*ranked[: 1 + RUNNERS_UP], starts[0]]
        # From a good start the coarsest level may lead away, where an image is smooth or its bias field strong.
        tries += [climb(start, coarsest) for start in others for coarsest in (0, 1)]
    return max(tries, key=lambda found: found[1])


def _rank(fixed: Volume, region: Volume, moving: Volume, starts: Sequence[Transform]) -> list[Transform]:
    """The starts, best first, by the metric on coarse copies; equal ones in the order given."""
    method = mutual_information(shrink(region, COARSE_MM) > 0.5)
    one, other, points = shrink(fixed, COARSE_MM), shrink(moving, COARSE_MM), _points(region)[::10]

    def score(start: Transform) -> float:
        if _seen(points, from_transform(start), moving) < LEAST_SEEN:
            return 0.0
        method.SetInitialTransform(start)
        return -float(method.MetricEvaluate(one, other))

    return sorted(starts, key=score, reverse=True)


def _measure(fixed: Volume, region: Volume, moving: Volume) -> Measure:
    """The mutual information of two images by a transform; 0 where the second hardly shows the first one's `region`."""
    one, other, points = shrink(fixed, WORKING_MM), shrink(moving, WORKING_MM), _points(region)
    method = mutual_information(shrink(region, WORKING_MM) > 0.5)
    method.SetMetricSamplingPercentage(SAMPLED[-1], SEED)

    def measured(transform: Transform) -> float:
        if _seen(points, from_transform(transform), moving) < LEAST_SEEN:
            return 0.0
        # A search that looks at one place alone, for `MetricEvaluate` takes every voxel, and where two grids coincide
        # no interpolation blurs it.
        method.SetOptimizerAsExhaustive([0] * len(transform.GetParameters()))
        method.SetInitialTransform(transform, inPlace=False)
        method.Execute(one, other)
        return -float(method.GetMetricValue())

    return measured


def _seen(points: Points, to_moving: Affine, moving: Volume) -> float:
    """Share of world points that lie, mapped, in the field of view of `moving`."""
    index = apply_map(np.linalg.inv(moving.affine) @ to_moving, points)
    return float(((index > -0.5) & (index < np.array(moving.array.shape) - 0.5)).all(axis=1).mean())


def mutual_information(region: sitk.Image) -> sitk.ImageRegistrationMethod:
    """Mutual information on samples of the `region` of the fixed image."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(region)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(SAMPLED, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _rigid_start(centre: Points, end: Points, turn: Turn) -> sitk.Euler3DTransform:
    """Turn about `centre`, then move it to `end`, both RAS."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_lps(centre).tolist())
    transform.SetMatrix(_linear(_turned(turn)))
    transform.SetTranslation(_lps(end - centre).tolist())
    return transform


def _affine_start(here: Points, there: Points, turn: Turn) -> sitk.AffineTransform:
    """Match the centres of two masks' points, and, turned, their spread along each axis."""
    turned, (centre, end) = _turned(turn), (points.mean(axis=0) for points in (here, there))
    spread = ((there - end) @ turned).std(axis=0) / here.std(axis=0)
    # ITK turns and scales about the centre; with the brain's there, these are decoupled from the translation.
    transform = sitk.AffineTransform(3)
    transform.SetCenter(_lps(centre).tolist())
    transform.SetMatrix(_linear(turned * spread))
    transform.SetTranslation(_lps(end - centre).tolist())
    return transform


def _turned(turn: Turn) -> Affine:
    """Rotation matrix `[3, 3]` of a turn."""
    return np.asarray(Rotation.from_euler("xyz", turn, degrees=True).as_matrix())


def _linear(matrix: Affine) -> list[float]:
    """A RAS matrix `[3, 3]` as ITK takes it."""
    flip = np.array([-1.0, -1.0, 1.0])
    return [float(value) for value in (flip[:, None] * matrix * flip).ravel()]


def _lps(point: Points) -> Points:
    return np.asarray(point * np.array([-1.0, -1.0, 1.0]))


def _points(mask: Volume) -> Points:
    """World points `[N, 3]` of a mask, thinned to some thousands."""
    index = np.argwhere(mask.array > 0.5)
    return apply_map(mask.affine, index[:: max(1, len(index) // 20_000)].astype(np.float64))


def _mass_centre(volume: Volume) -> Points:
    """Centre of mass in world mm."""
    total = float(volume.array.sum(dtype=np.float64))
    index = [
        float(volume.array.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64) @ np.arange(size)) / total
        for axis, size in enumerate(volume.array.shape)
    ]
    return np.asarray(apply_map(volume.affine, np.array([index]))[0])


def _mean_distance(one: Points, other: Points) -> float:
    return float(np.linalg.norm(one - other, axis=1).mean())
