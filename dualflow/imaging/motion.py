"""Motion between the frames of a PET series: each frame's rigid map to a reference frame.

Frames are registered on small smoothed copies, because a short frame is mostly noise at full resolution. The maps are
applied to the full-size frames, once. The metric is mutual information, because uptake changes between frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine
from scipy.ndimage import binary_dilation

from dualflow.arrays import Bools, Singles
from dualflow.imaging.alignment_search import SEED, mutual_information
from dualflow.imaging.components import largest_component
from dualflow.imaging.geometry import Affine, Points, Volume, from_sitk, from_transform, shrink, smooth, to_sitk

WORKING_MM = 4.0
SMOOTHING_MM = 8.0
"""Full width at half maximum of the copies' Gaussian."""
# Share of the copy's 99th percentile above which a voxel is head, and voxels beyond its edge that enter the metric.
HEAD = 0.2
RIM = 2
# Smallest share of the reference's counts with which a frame is registered.
MIN_COUNTS = 0.05
# Mutual information with the reference, in nats, that noise alone does not reach.
MIN_NATS = 0.1
# A head in its holder does not move further; such a result is a failed registration.
MAX_MOTION_MM = 40.0
# Below this a frame is not moved: interpolation would blur it more than the motion does.
STILL_MM = 0.5
SAMPLED = 0.5


@dataclass(frozen=True)
class Motion:
    """Rigid motion of one frame relative to the reference frame.

    Attributes:
        to_frame: points map from the reference's world to the frame's.
        mean_mm: mean distance by which it moves points of the head.
        max_mm: the largest distance.
        placed_by: the frame whose registration is used: this one, or its nearest registered neighbour in time.
        note: why this frame could not be registered, or None.
    """

    to_frame: Affine
    mean_mm: float
    max_mm: float
    placed_by: int
    note: str | None = None

    @property
    def still(self) -> bool:
        """Whether the frame is used without moving it."""
        return self.mean_mm < STILL_MM


def working_copy(frame: Volume) -> Volume:
    """A frame, shrunk and smoothed for registration."""
    array, affine = from_sitk(shrink(frame, WORKING_MM))
    return smooth(Volume(np.asarray(array, dtype=np.float32), affine, frame.path), SMOOTHING_MM)


def find_motion(copies: Mapping[int, Volume], seconds: Mapping[int, float]) -> tuple[int, dict[int, Motion]]:
    """Register working copies with the frame with the most counts; a failed frame takes its neighbour's motion.

    Args:
        copies: working copy by frame.
        seconds: duration by frame.

    Returns:
        The reference frame, and every frame's motion.
    """
    total = sum(seconds[index] * copy.array for index, copy in copies.items())
    head_of_total = _head(np.asarray(total))
    counts = {index: seconds[index] * float(copy.array[head_of_total].sum()) for index, copy in copies.items()}
    reference = max(counts, key=counts.__getitem__)
    fixed = copies[reference]
    head = _head(fixed.array)
    if not head.any() or counts[reference] <= 0:
        return reference, {index: Motion(np.eye(4), 0.0, 0.0, index, "shows no head") for index in copies}
    points = apply_affine(fixed.affine, np.argwhere(head).astype(np.float64))
    maps: dict[int, Affine] = {reference: np.eye(4)}
    notes: dict[int, str] = {}
    for index in sorted(copies.keys() - maps.keys()):
        share = counts[index] / counts[reference]
        too_few = f"has {share:.1%} of the reference frame's counts"
        result = _register(fixed, head, points, copies[index]) if share >= MIN_COUNTS else too_few
        if isinstance(result, str):
            notes[index] = result
        else:
            maps[index] = result
    motions = {}
    for index in sorted(copies):
        nearest = min(maps, key=lambda registered: abs(registered - index))
        distance = _distances(maps[nearest], points)
        motions[index] = Motion(maps[nearest], float(distance.mean()), float(distance.max()), nearest, notes.get(index))
    return reference, motions


def _head(array: Singles) -> Bools:
    """Largest connected component above the intensity threshold."""
    return largest_component(array > HEAD * np.percentile(array, 99))


def _register(fixed: Volume, head: Bools, points: Points, moving: Volume) -> Affine | str:
    """Rigid points map from `fixed` to `moving`, the identity unless another is better; or the reason of a failure."""
    images = [to_sitk(volume.array, volume.affine) for volume in (fixed, moving)]
    region = to_sitk(binary_dilation(head, iterations=RIM).astype(np.uint8), fixed.affine)
    method = mutual_information(region)
    method.SetMetricSamplingPercentage(SAMPLED, SEED)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0,
        minStep=0.001,
        numberOfIterations=200,
        relaxationFactor=0.8,
        gradientMagnitudeTolerance=1e-8,
    )
    transform = sitk.Euler3DTransform()
    transform.SetCenter((points.mean(axis=0) * (-1, -1, 1)).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    try:
        still = -float(method.MetricEvaluate(*images))
        method.Execute(*images)
        moved = -float(method.MetricEvaluate(*images))
    except RuntimeError:  # the images hardly overlap, or the frame is constant
        return "does not overlap the reference frame"
    if max(still, moved) < MIN_NATS:
        return f"shares {max(still, moved):.3f} nats with the reference frame"
    if moved <= still:
        return np.eye(4)
    to_frame = from_transform(transform)
    furthest = float(_distances(to_frame, points).max())
    return to_frame if furthest <= MAX_MOTION_MM else f"fits the reference frame best {furthest:.0f} mm away"


def _distances(points_map: Affine, points: Points) -> Points:
    """Distance in mm by which a map moves each point."""
    return np.asarray(np.linalg.norm(apply_affine(points_map, points) - points, axis=1))
