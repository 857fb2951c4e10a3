"""Linear registration: target to source by a rigid map, source to template by an affine one.

Both maximise mutual information within the brain; see `alignment_search`. A result that does not cover the brain, or
does not fill the template's, is an error. Heads that a wrong header turns are recognised in any of the 24 orientations
of a box. A mirrored head is not: brains are too symmetric, so left and right are those of the header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine
from scipy.linalg import polar
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from dualflow.arrays import Bools
from dualflow.errors import RegistrationError
from dualflow.imaging.alignment_search import AlignmentSearch, coverage, mask_points
from dualflow.imaging.geometry import Affine, Points, Volume, from_transform, resample
from dualflow.imaging.mni_template import coarse_template

Angles: TypeAlias = tuple[float, float, float]

# Starting rotations in degrees: pitch, in which heads differ most, then roll and yaw. The optimiser corrects up to 20
# degrees. The identity comes first.
ROTATIONS = tuple(
    sorted(
        product((-45, -30, -15, 0, 15, 30, 45), (-30, 0, 30), (-30, 0, 30)), key=lambda angles: sum(map(abs, angles))
    )
)
# The other 23 orientations of a box, and tilts about each of them that cover all rotations in steps of 30 degrees.
TURNS = tuple(turn for turn in Rotation.create_group("O") if turn.magnitude() > 1)
TILTS = tuple(product((-30.0, 0.0, 30.0), (-30.0, 0.0, 30.0), (-30.0, 0.0, 30.0)))
# Mutual information in nats of a source with the template, below which turned heads are tried. Aligned T1w and FLAIR
# heads have 0.50 to 1.02, and the best wrong orientation at most 0.38.
MAYBE_TURNED_NATS = 0.45
# Voxels of the template beyond its brain that enter the metric.
RIM = 2
# Mutual information in nats, more than twice that of unrelated noise on these samples.
MIN_NATS = 0.05
# Share of the source's brain that a target must cover.
MIN_COVERAGE = 0.9
# Bounds of an aligned brain against the template's.
VOLUME_RATIO = (0.4, 2.5)
MIN_DICE = 0.85


@dataclass(frozen=True)
class Alignment:
    """A points map and its quality.

    Attributes:
        points_map: world of the moving scan to world of the fixed one.
        mutual_information: Mattes' estimate in nats; higher is better.
        displacement_mm: mean distance by which the map moves points of the brain.
        overlap: rigid: share of the brain that the target covers; affine: Dice with the template's brain.
        before: mutual information and overlap by the scanner's coordinates; None without a registration, and for the
            template, which has no scanner coordinates.
        in_view: affine: share of the template's brain in the source's field of view; None for a rigid alignment.
    """

    points_map: Affine
    mutual_information: float
    displacement_mm: float
    overlap: float
    before: tuple[float, float] | None = None
    in_view: float | None = None

    @property
    def rotation(self) -> Affine:
        """The rotation `[3, 3]` of the map, by polar decomposition."""
        rotation, _ = polar(self.points_map[:3, :3])
        return np.asarray(rotation)

    @property
    def rotation_deg(self) -> float:
        """Angle of the rotation in degrees: how far the moving head lies turned, by its header, from the fixed one."""
        return float(np.degrees(Rotation.from_matrix(self.rotation).magnitude()))


def register_rigid(target: Volume, source: Volume, source_mask: Bools) -> Alignment:
    """Rigid points map from `target` to `source`, by mutual information within the source's brain.

    Raises:
        RegistrationError: the aligned target does not cover the brain, or the scans share too little.
    """
    mask = Volume(source_mask.astype(np.float32), source.affine)
    centre = _mass_centre(mask)
    # The brain's centre maps to itself by the scanner's coordinates, to the head's centre of mass, or to the middle of
    # the field of view.
    bright = Volume(np.maximum(target.array - np.float32(target.array.mean()), 0), target.affine)
    middle = apply_affine(target.affine, (np.array([target.array.shape]) - 1) / 2)[0]
    ends = (centre, _mass_centre(bright), middle)
    starts = [_rigid_start(centre, end, rotation) for end, rotation in product(ends, _tilted())]
    turned = (_rigid_start(centre, end, rotation) for end, rotation in product(ends[1:], _turned()))
    search = AlignmentSearch(source, mask, target)
    transform, information = search.best_transform(starts, turned)
    to_target = np.eye(4) if transform is starts[0] else from_transform(transform)
    before = search.information(sitk.Euler3DTransform()), coverage(mask_points(mask), np.eye(4), target)
    return replace(_checked(to_target, information, target, source, mask), before=before)


def assume_aligned(target: Volume, source: Volume, source_mask: Bools) -> Alignment:
    """Identity alignment of a target that is already in the source's space, with the metrics of a registration.

    Raises:
        RegistrationError: the scans share too little, or the target does not cover the brain.
    """
    mask = Volume(source_mask.astype(np.float32), source.affine)
    information = AlignmentSearch(source, mask, target).information(sitk.Euler3DTransform())
    return _checked(np.eye(4), information, target, source, mask)


def _checked(to_target: Affine, information: float, target: Volume, source: Volume, mask: Volume) -> Alignment:
    """Check the points map `to_target`, source to target, and return its alignment; `mask` is the source's brain."""
    points = mask_points(mask)
    covered = coverage(points, to_target, target)
    if information < MIN_NATS:
        raise RegistrationError(
            f"{target.path}: aligned with {source.path.name} they share {information:.3f} nats, expected at least "
            f"{MIN_NATS}; check that it is a scan of the same head"
        )
    if covered < MIN_COVERAGE:
        raise RegistrationError(
            f"{target.path}: aligned with {source.path.name} it shows {covered:.0%} of the brain, expected at least "
            f"{MIN_COVERAGE:.0%}; check that both are of one person and that its field of view holds the brain"
        )
    return Alignment(np.linalg.inv(to_target), information, _mean_distance(to_target, points), covered)


def register_affine(source: Volume, source_mask: Bools) -> Alignment:
    """Affine points map from `source` to the template, both skull-stripped.

    Raises:
        RegistrationError: the aligned brain does not fill the template's.
    """
    image, template_mask = coarse_template()
    brain = Volume(np.where(source_mask, source.array, 0).astype(np.float32), source.affine)
    mask = Volume(source_mask.astype(np.float32), source.affine)
    # The rim outside the template's brain makes the metric sensitive to the border of the source's brain.
    rim = Volume(binary_dilation(template_mask.array > 0, iterations=RIM).astype(np.float32), template_mask.affine)
    template_points = mask_points(template_mask)
    upright, turned = (
        _affine_starts(template_points, mask_points(mask), rotations) for rotations in (_tilted(), _turned())
    )
    search = AlignmentSearch(image, rim, brain)
    transform, information = search.best_transform(list(upright), turned, MAYBE_TURNED_NATS)
    to_source = from_transform(transform)
    mapped = resample(mask, *template_mask.grid, to_source) > 0.5
    template_brain = template_mask.array > 0.5
    dice = 2 * float((mapped & template_brain).sum()) / float(mapped.sum() + template_brain.sum())
    ratio = abs(float(np.linalg.det(to_source[:3, :3])))
    if not VOLUME_RATIO[0] <= ratio <= VOLUME_RATIO[1] or dice < MIN_DICE:
        raise RegistrationError(
            f"{source.path}: its brain has {ratio:.2f} times the template's volume and overlaps it, aligned, by Dice "
            f"{dice:.2f}, expected {VOLUME_RATIO[0]} to {VOLUME_RATIO[1]} times and Dice {MIN_DICE} or more; check the "
            "scan's orientation, voxel size and field of view"
        )
    distance, in_view = _mean_distance(to_source, template_points), coverage(template_points, to_source, source)
    return Alignment(np.linalg.inv(to_source), information, distance, dice, in_view=in_view)


def _tilted() -> list[Affine]:
    """Rotation matrices `[3, 3]` around the header's orientation."""
    return [_rotation(angles) for angles in ROTATIONS]


def _turned() -> list[Affine]:
    """Rotation matrices `[3, 3]` around all other orientations of a box."""
    return [turn.as_matrix() @ _rotation(angles) for turn, angles in product(TURNS, TILTS)]


def _rigid_start(centre: Points, end: Points, rotation: Affine) -> sitk.Euler3DTransform:
    """Rotate about `centre`, then move it to `end`, both RAS."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_lps(centre).tolist())
    transform.SetMatrix(_lps_matrix(rotation))
    transform.SetTranslation(_lps(end - centre).tolist())
    return transform


def _affine_starts(fixed: Points, moving: Points, rotations: Iterable[Affine]) -> Iterator[sitk.AffineTransform]:
    """Match the centres of two masks' points and, for each rotation, their spread along each axis."""
    centre, end = fixed.mean(axis=0), moving.mean(axis=0)
    fixed_spread, centred = fixed.std(axis=0), moving - end
    for rotation in rotations:
        # ITK rotates and scales about this centre. At the centre of the brain they are decoupled from the translation.
        transform = sitk.AffineTransform(3)
        transform.SetCenter(_lps(centre).tolist())
        transform.SetMatrix(_lps_matrix(rotation * ((centred @ rotation).std(axis=0) / fixed_spread)))
        transform.SetTranslation(_lps(end - centre).tolist())
        yield transform


def _rotation(angles: Angles) -> Affine:
    """Rotation matrix `[3, 3]` of angles in degrees."""
    return np.asarray(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())


def _lps_matrix(matrix: Affine) -> list[float]:
    """Entries of a RAS matrix `[3, 3]` in LPS."""
    flip = np.array([-1.0, -1.0, 1.0])
    return [float(value) for value in (flip[:, None] * matrix * flip).ravel()]


def _lps(point: Points) -> Points:
    return np.asarray(point * np.array([-1.0, -1.0, 1.0]))


def _mass_centre(volume: Volume) -> Points:
    """Centre of mass in world mm."""
    total = float(volume.array.sum(dtype=np.float64))
    index = [
        float(volume.array.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64) @ np.arange(size)) / total
        for axis, size in enumerate(volume.array.shape)
    ]
    return np.asarray(apply_affine(volume.affine, np.array([index]))[0])


def _mean_distance(points_map: Affine, points: Points) -> float:
    """Mean distance in mm by which a map moves points."""
    return float(np.linalg.norm(apply_affine(points_map, points) - points, axis=1).mean())
