"""Linear registration: target to source by a rigid map, source to template by an affine one.

Both maximise Mattes' mutual information (Mattes et al., IEEE TMI 2003) over a coarse-to-fine pyramid, on fixed samples
and one thread, so that equal inputs give equal maps. The starts are scored by the same metric and the best is taken;
where the result is still poor the runner-up is tried as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import nilearn.datasets
import numpy as np
import SimpleITK as sitk  # noqa: N813

from dualflow.errors import RegistrationError
from dualflow.imaging.geometry import (
    Affine,
    BoolArray,
    Points,
    Volume,
    apply_map,
    from_transform,
    resample,
    spacing_of,
    to_sitk,
    to_transform,
)

Transform: TypeAlias = sitk.Euler3DTransform | sitk.AffineTransform

# Registration sees copies of about this spacing: it places them to a small fraction of a voxel.
WORKING_MM = 2.5
TEMPLATE_MM = 3
SEED = 1
BINS = 32
SHRINK = (4, 2, 1)
SMOOTHING_MM = (6.0, 3.0, 0.0)
SAMPLED = (1.0, 1.0, 0.3)
# Mutual information in nats that aligned scans of a brain exceed; below it the runner-up is tried too.
POOR_NATS = 0.15
# Below this, more than twice what unrelated noise scores on these samples, two scans have nothing in common.
MIN_NATS = 0.05
# Share of the source's brain that a target must show; bounds that an aligned brain keeps.
MIN_COVERAGE = 0.9
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
    """

    points_map: Affine
    mutual_information: float
    displacement_mm: float
    overlap: float


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
    starts = [_rigid_start(centre, end) for end in (centre, _mass_centre(bright), middle)]
    transform, information = _search(_shrink(source), _shrink(mask) > 0.5, _shrink(target), starts)
    to_target = from_transform(transform)
    points = _points(mask)
    moved = apply_map(to_target, points)
    index = apply_map(np.linalg.inv(target.affine), moved)
    seen = float(((index > -0.5) & (index < np.array(target.array.shape) - 0.5)).all(axis=1).mean())
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
    region = sitk.BinaryDilate(to_sitk(template_mask.array.astype(np.uint8), template_mask.affine), (2, 2, 2))
    transform, information = _search(_shrink(image), region, _shrink(brain), [_affine_start(template_mask, mask)])
    to_source = from_transform(transform)
    i, j, k = template_mask.array.shape
    mapped, there = resample(mask, template_mask.affine, (i, j, k), to_source) > 0.5, template_mask.array > 0.5
    dice = 2 * float((mapped & there).sum()) / float(mapped.sum() + there.sum())
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
    fixed: sitk.Image, region: sitk.Image, moving: sitk.Image, starts: Sequence[Transform]
) -> tuple[Transform, float]:
    """Return the best transform found, fixed to moving, and its mutual information."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(region)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(SAMPLED, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SMOOTHING_MM)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=100, relaxationFactor=0.6
    )

    def score(start: Transform) -> float:
        method.SetInitialTransform(start)
        return -float(method.MetricEvaluate(fixed, moving))

    def climb(start: Transform) -> tuple[Transform, float]:
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(fixed, moving)
        return start, -float(method.GetMetricValue())

    ranked = sorted(starts, key=score, reverse=True) if len(starts) > 1 else list(starts)
    best = climb(ranked[0])
    if best[1] < POOR_NATS and len(ranked) > 1:
        best = max(best, climb(ranked[1]), key=lambda found: found[1])
    return best


def _shrink(volume: Volume) -> sitk.Image:
    """Average blocks of voxels to about the working spacing."""
    image = to_sitk(volume.array, volume.affine)
    return sitk.BinShrink(image, [max(1, round(WORKING_MM / edge)) for edge in spacing_of(volume.affine)])


def _rigid_start(centre: Points, end: Points) -> sitk.Euler3DTransform:
    """Translation of `centre` to `end`, both RAS; it turns about `centre`."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_lps(centre).tolist())
    transform.SetTranslation(_lps(end - centre).tolist())
    return transform


def _affine_start(fixed: Volume, moving: Volume) -> sitk.AffineTransform:
    """Match centre and spread of two masks along each world axis."""
    here, there = _points(fixed), _points(moving)
    guess = np.diag([*(there.std(axis=0) / here.std(axis=0)), 1.0])
    guess[:3, 3] = there.mean(axis=0) - guess[:3, :3] @ here.mean(axis=0)
    transform = to_transform(guess)
    # ITK turns and scales about the centre; moving it there decouples these from the translation.
    recentred = sitk.AffineTransform(3)
    recentred.SetCenter(_lps(here.mean(axis=0)).tolist())
    recentred.SetMatrix(transform.GetMatrix())
    recentred.SetTranslation(_lps(there.mean(axis=0) - here.mean(axis=0)).tolist())
    return recentred


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
