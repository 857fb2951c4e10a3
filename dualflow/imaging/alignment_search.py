"""Search for the linear transform with the highest mutual information, from many starting rotations.

Mattes' mutual information (Mattes et al., IEEE TMI 2003) is maximised over a coarse-to-fine pyramid, on fixed samples
and one thread, so that equal inputs give equal transforms. Heads may be tilted and off-centre, so that a single start
can end in a local maximum. Every start is therefore scored on coarse copies, and the optimiser begins at the best.
Heads may also be turned by a wrong header; quarter and half turns are tried if the alignment is poor without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine

from dualflow.imaging.geometry import Affine, Points, Volume, from_transform, shrink

Transform: TypeAlias = sitk.Euler3DTransform | sitk.AffineTransform

# Voxel spacing of the copies for optimisation, which is accurate to a small fraction of a voxel.
WORKING_MM = 2.5
# Voxel spacing of the copies for scoring; a start takes milliseconds.
COARSE_MM = 8.0
SEED = 1
BINS = 32
SHRINK = (4, 2, 1)
SMOOTHING_MM = (6.0, 3.0, 0.0)
SAMPLED = (1.0, 1.0, 0.3)
# Mutual information in nats that aligned scans of a brain exceed; below it the next best starts are tried too.
POOR_NATS = 0.15
RUNNERS_UP = 2
# The header's orientation is kept unless a turned one has this many times its mutual information. Between right and
# wrong orientations of a brain the ratio is 1.4 or more to the template, and 4 or more between images of one person.
TURN_GAIN = 1.15
# Share of the first start's mutual information that an optimisation may end below it and still confirm it.
CONFIRMING = 0.95
# A transform that covers less of the region scores 0, because few samples overestimate mutual information.
MIN_COVERED = 0.25


@dataclass(frozen=True)
class AlignmentSearch:
    """Registration of a moving image to a region of a fixed image.

    Attributes:
        fixed: the reference image.
        region: mask of the compared region in the fixed image's world, above 0.5 inside.
        moving: the image that is transformed.
    """

    fixed: Volume
    region: Volume
    moving: Volume

    def best_transform(
        self, starts: Sequence[Transform], turned: Iterable[Transform] = (), poor_nats: float = POOR_NATS
    ) -> tuple[Transform, float]:
        """Optimise from the best of the starts.

        Args:
            starts: around the header's orientation; the first is the likeliest.
            turned: quarter and half turns from it, drawn and scored only if the best alignment around it is poor.
            poor_nats: mutual information below which it is.

        Returns:
            The best transform, fixed to moving, and its mutual information in nats. It is `starts[0]` itself unless
            another is better, so that aligned scans are not moved.
        """
        ranked = self._ranked(starts)
        initial, optimised = (starts[0], self.information(starts[0])), self._optimised(ranked[0])
        candidates = [initial, optimised]
        upright = max(initial[1], optimised[1])
        if upright < poor_nats and (ranked_turned := self._ranked(turned)):
            best_turned = self._optimised(ranked_turned[0])
            if best_turned[1] > TURN_GAIN * upright:
                return best_turned
        if optimised[1] < max(POOR_NATS, CONFIRMING * initial[1]):
            further = [*ranked[: 1 + RUNNERS_UP], starts[0]]
            # In a smooth image or a strong bias field, the coarsest level may lead away from a good start.
            tries = [(start, coarsest) for start in further for coarsest in (0, 1)]
            candidates += [self._optimised(*attempt) for attempt in tries[1:]]  # the first is `optimised`
        return max(candidates, key=lambda candidate: candidate[1])

    def information(self, transform: Transform) -> float:
        """Mutual information in nats by a transform; 0 if the moving image hardly covers the region."""
        if coverage(self._points, from_transform(transform), self.moving) < MIN_COVERED:
            return 0.0
        method = self._metric
        # An exhaustive search of a single position: `MetricEvaluate` would use every voxel instead of the samples, and
        # score grids that coincide higher, because no interpolation blurs them.
        method.SetOptimizerAsExhaustive([0] * len(transform.GetParameters()))
        method.SetInitialTransform(transform, inPlace=False)
        method.Execute(*self._working)
        return -float(method.GetMetricValue())

    def _ranked(self, starts: Iterable[Transform]) -> list[Transform]:
        """The starts by their metric on coarse copies, best first; ties keep their order."""
        method = _value_only(mutual_information(shrink(self.region, COARSE_MM) > 0.5))
        fixed, moving, points = shrink(self.fixed, COARSE_MM), shrink(self.moving, COARSE_MM), self._points[::10]

        def score(start: Transform) -> float:
            if coverage(points, from_transform(start), self.moving) < MIN_COVERED:
                return 0.0
            method.SetInitialTransform(start)
            return -float(method.MetricEvaluate(fixed, moving))

        return sorted(starts, key=score, reverse=True)

    def _optimised(self, start: Transform, coarsest: int = 0) -> tuple[Transform, float]:
        """Optimise from one start, from pyramid level `coarsest` down; return the transform and its information."""
        transform, method = copy(start), self._optimiser
        method.SetShrinkFactorsPerLevel(SHRINK[coarsest:])
        method.SetSmoothingSigmasPerLevel(SMOOTHING_MM[coarsest:])
        method.SetMetricSamplingPercentagePerLevel(SAMPLED[coarsest:], SEED)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(*self._working)
        except RuntimeError:  # the optimiser left the image, or started outside it
            return transform, 0.0
        return transform, self.information(transform)

    @cached_property
    def _working(self) -> tuple[sitk.Image, sitk.Image]:
        return shrink(self.fixed, WORKING_MM), shrink(self.moving, WORKING_MM)

    @cached_property
    def _working_region(self) -> sitk.Image:
        return shrink(self.region, WORKING_MM) > 0.5

    @cached_property
    def _points(self) -> Points:
        return mask_points(self.region)

    @cached_property
    def _metric(self) -> sitk.ImageRegistrationMethod:
        method = _value_only(mutual_information(self._working_region))
        method.SetMetricSamplingPercentage(SAMPLED[-1], SEED)
        return method

    @cached_property
    def _optimiser(self) -> sitk.ImageRegistrationMethod:
        method = mutual_information(self._working_region)
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=2.0, minStep=0.01, numberOfIterations=100, relaxationFactor=0.6
        )
        return method


def mutual_information(region: sitk.Image) -> sitk.ImageRegistrationMethod:
    """Mutual information on samples of the `region` of the fixed image."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(region)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(SAMPLED, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def coverage(points: Points, to_moving: Affine, moving: Volume) -> float:
    """Share of world points that a points map takes into the field of view of `moving`."""
    index = apply_affine(np.linalg.inv(moving.affine) @ to_moving, points)
    return float(((index > -0.5) & (index < np.array(moving.array.shape) - 0.5)).all(axis=1).mean())


def mask_points(mask: Volume) -> Points:
    """World points `[N, 3]` of a mask, thinned to about 20,000."""
    index = np.argwhere(mask.array > 0.5)
    return np.asarray(apply_affine(mask.affine, index[:: max(1, len(index) // 20_000)].astype(np.float64)))


def _value_only(method: sitk.ImageRegistrationMethod) -> sitk.ImageRegistrationMethod:
    """Disable the metric's gradient images, which take most of the time and do not affect its value."""
    method.SetMetricUseFixedImageGradientFilter(False)
    method.SetMetricUseMovingImageGradientFilter(False)
    return method
