"""One person's anatomy: size and pose, a smooth fold-free deformation of the template, and lost tissue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dualflow.arrays import Bools, Doubles, Singles
from dualflow.cohort.findings import Findings
from dualflow.cohort.laws import LAWS
from dualflow.cohort.lesions import core_share, viability
from dualflow.cohort.people import Person
from dualflow.cohort.template import BRAIN, COARSE, COARSE_SHAPE, Frame, coarse_points, template
from dualflow.cohort.uptake import regions, tissue_loss

Affine = Doubles
Points = Callable[[Singles], Singles]
Voxel = TypeVar("Voxel", bound=np.generic)

HEAD_CENTRE = (0.0, -18.0, -10.0)
MIN_JACOBIAN = 0.2
# (control spacing, standard deviation) in mm of the layers of the random displacement: head shape, lobes, gyri.
_LAYERS = ((60.0, 2.6), (32.0, 1.0), (16.0, 0.32))
_STRIDE = 3


@dataclass(frozen=True)
class Anatomy:
    """The transform of the template into a person's head.

    Attributes:
        to_template: 4x4, points map from the T1 world to the template world before the deformation.
        displacement: mm [3, *COARSE_SHAPE], added to a point in the template world; trilinear between the nodes.
        findings: lost tissue, ventricles and lesions.
    """

    to_template: Affine
    displacement: Singles
    findings: Findings

    def template_points(self, points: Singles) -> Singles:
        """Take points [3, ...] of the T1 world to the template world, deformation included."""
        return self.deform(transform(self.to_template, points))

    def deform(self, points: Singles) -> Singles:
        """Add the displacement to points [3, ...] of the template world."""
        at = COARSE.index(points)
        moves = [ndimage.map_coordinates(part, at, order=1, mode="nearest") for part in self.displacement]
        return np.asarray(points + np.stack(moves), np.float32)


@dataclass(frozen=True)
class Tissue:
    """Tissue of a grid's head and brain voxels, which are addressed by flat index.

    Attributes:
        head: flat indices of voxels in or near the head.
        soft: muscle and skin fraction at `head`.
        fat: fat and marrow fraction at `head`.
        brain: flat indices of voxels in or near the brain.
        grey: grey-matter fraction at `brain`, as are all further fields.
        white: white-matter fraction.
        fluid: fluid fraction.
        detail: T1 signal beyond the fractions.
        mask: in the template's brain mask.
        viability: factor on the uptake of grey and white matter, below 1 around lesions; the MR does not show it.
        grey_region: row of the regions table for grey matter.
        white_region: the same for white matter.
    """

    head: npt.NDArray[np.intp]
    soft: Singles
    fat: Singles
    brain: npt.NDArray[np.intp]
    grey: Singles
    white: Singles
    fluid: Singles
    detail: Singles
    mask: Bools
    viability: Singles
    grey_region: npt.NDArray[np.int16]
    white_region: npt.NDArray[np.int16]


def anatomy(person: Person) -> Anatomy:
    """Draw the anatomy of a person."""
    rng = person.generator("anatomy")
    loss = tissue_loss(person)
    size = rng.normal(0.955 if person.sex == "M" else 0.915, 0.022) * (1 + rng.normal(0, 0.012, 3))
    rotation = Rotation.from_euler("xyz", np.clip(rng.normal(0, (5, 3, 4)), -12, 12), degrees=True).as_matrix()
    to_template = np.eye(4)
    to_template[:3, :3] = np.diag(1 / size) @ rotation
    to_template[:3, 3] = np.asarray(HEAD_CENTRE) - to_template[:3, :3] @ np.clip(rng.normal(0, 4, 3), -9, 9)
    displacement = _fold_free(_random(rng) + _atrophy(person, loss, rng))
    findings = Findings(loss, _ventricle_ml(displacement), LAWS[person.law].lesions(person))
    return Anatomy(to_template, displacement, findings)


def transform(affine: Affine, points: Singles) -> Singles:
    """Apply a 4x4 to points [3, ...]."""
    moved = np.tensordot(affine[:3, :3].astype(np.float32), points, axes=1)
    return np.asarray(moved + affine[:3, 3].astype(np.float32).reshape(3, *(1,) * (points.ndim - 1)), np.float32)


def lattice(affine: Affine, shape: tuple[int, int, int]) -> tuple[Singles, Affine]:
    """World points [3, ...] of every third voxel, extended beyond the grid's end, and the lattice's affine."""
    counts = [(n - 1) // _STRIDE + 2 for n in shape]
    coarse = affine @ np.diag([_STRIDE, _STRIDE, _STRIDE, 1.0])
    return transform(coarse, np.indices(counts, dtype=np.float32)), coarse


def points_on_grid(points: Points, affine: Affine, shape: tuple[int, int, int]) -> Singles:
    """Evaluate a smooth map at every voxel [3, *shape], by a cubic spline through every third voxel."""
    world, _ = lattice(affine, shape)
    fine = points(world)
    for axis, n in enumerate(shape, start=1):
        fine = np.moveaxis(np.tensordot(_spline(fine.shape[axis], n), fine, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(fine)


def jacobian(displacement: Singles, spacing: float = COARSE.spacing) -> Singles:
    """Determinant of the derivative of x + u(x) at every node, u in mm [3, ...]."""
    rows = np.stack([np.stack(np.gradient(part, spacing, axis=(0, 1, 2))) for part in displacement])
    return np.asarray(np.linalg.det(np.moveaxis(rows, (0, 1), (-2, -1)) + np.eye(3, dtype=np.float32)), np.float32)


def best_affine(person_anatomy: Anatomy) -> Affine:
    """Least-squares 4x4 of the whole points map, deformation included, over the brain."""
    base, points = template(), coarse_points()
    voxels = np.round(base.head.index(points)).astype(int)
    voxels = np.minimum(voxels, np.reshape(base.zone.shape, (3, 1, 1, 1)) - 1)
    brain = points[:, base.zone[tuple(voxels)] == BRAIN]
    moved = person_anatomy.deform(brain).astype(np.float64)
    solution, *_ = np.linalg.lstsq(np.vstack([brain, np.ones_like(brain[:1])]).T.astype(np.float64), moved.T)
    fitted = np.eye(4)
    fitted[:3] = solution.T
    return np.asarray(fitted @ person_anatomy.to_template)


def tissue(person_anatomy: Anatomy, points: Singles) -> Tissue:
    """Look up tissue at template-world points [3, ...] of a whole grid."""
    base = template()
    flat = points.reshape(3, -1)
    zone = _lookup(base.zone, base.head.index(flat))
    head, brain = np.flatnonzero(zone), np.flatnonzero(zone == BRAIN)
    at_head, at_brain = base.head.index(flat[:, head]), base.brain.index(flat[:, brain])
    grey_region = _lookup(base.grey_region, at_brain)
    grey, fluid = _linear(base.grey, at_brain), _linear(base.fluid, at_brain)
    # Thinning starts near fluid: sulci open before gyri shrink.
    findings, brain_points = person_anatomy.findings, flat[:, brain]
    thinning = findings.loss.astype(np.float32)[grey_region] * (0.4 + 2.0 * _linear(base.exposure, at_brain))
    lost = grey * np.minimum(thinning, 0.9)
    grey, white, fluid = grey - lost, _linear(base.white, at_brain), fluid + lost
    core = core_share(findings.lesions, brain_points)
    return Tissue(
        head=head,
        soft=_linear(base.soft, at_head),
        fat=_linear(base.fat, at_head),
        brain=brain,
        grey=grey * (1 - core),
        white=white * (1 - core),
        fluid=fluid + core * (grey + white),
        detail=_linear(base.detail, at_brain) * (1 - core),
        mask=_lookup(base.mask, at_brain),
        viability=viability(findings.lesions, brain_points),
        grey_region=grey_region,
        white_region=_lookup(base.white_region, at_brain),
    )


def _random(rng: np.random.Generator) -> Singles:
    """Band-limited displacement [3, *COARSE_SHAPE]: cubic splines through normal values on three lattices."""
    total = np.zeros((3, *COARSE_SHAPE), np.float32)
    for spacing, sd in _LAYERS:
        step = round(spacing / COARSE.spacing)
        counts = [(n - 1) // step + 4 for n in COARSE_SHAPE]
        layer = rng.normal(0, sd, (3, *counts)).astype(np.float32)
        for axis, n in enumerate(COARSE_SHAPE, start=1):
            layer = np.moveaxis(np.tensordot(_spline(counts[axis - 1], n, step), layer, axes=(1, axis)), 0, axis)
        total += layer
    return total


def _atrophy(person: Person, loss: Doubles, rng: np.random.Generator) -> Singles:
    """Displacement of growing ventricles (sampled nearer their middle) and shrinking hippocampi (farther from it)."""
    pull = template().pull
    ventricles = -1.0 + 4.5 * ((person.age - 50) / 40) ** 1.5 + 3.5 * person.atrophy + rng.normal(0, 0.8)
    total = pull["ventricles"] * np.float32(np.clip(ventricles, -1.5, 6.5))
    lost = dict(zip(regions().index, loss, strict=True))
    for half in ("Left", "Right"):
        total = total - pull[f"{half.lower()} hippocampus"] * np.float32(7.0 * lost[f"{half}-Hippocampus"])
    return np.asarray(total, np.float32)


def _ventricle_ml(displacement: Singles) -> float:
    """Volume of the lateral ventricles in mL, before the change of head size."""
    base, points = template(), coarse_points() + displacement
    share = _linear(base.ventricles, Frame(base.brain.origin, 2.0).index(points))
    return float(share.sum() * COARSE.spacing**3 / 1000)


def _fold_free(displacement: Singles) -> Singles:
    """Scale a displacement down until no cell is squeezed below MIN_JACOBIAN."""
    while jacobian(displacement).min() < MIN_JACOBIAN:
        displacement = displacement * np.float32(0.93)
    return displacement


@cache
def _spline(nodes: int, n: int, step: int = _STRIDE) -> Singles:
    """Matrix [n, nodes] of cubic spline interpolation from every `step`-th position to positions 0 .. n-1."""
    from scipy.interpolate import make_interp_spline  # half a second to import

    spline = make_interp_spline(step * np.arange(nodes), np.eye(nodes), k=min(3, nodes - 1))
    return np.asarray(spline(np.arange(n)), dtype=np.float32)


def _linear(image: Singles, at: Singles) -> Singles:
    return np.asarray(ndimage.map_coordinates(image, at, order=1, mode="nearest", output=np.float32))


def _lookup(image: npt.NDArray[Voxel], at: Singles) -> npt.NDArray[Voxel]:
    """Nearest voxel's value [N] at voxel coordinates [3, N]; zero beyond the image."""
    flat, inside = np.zeros(at.shape[1], np.int32), np.ones(at.shape[1], bool)
    rounded, index = np.empty(at.shape[1], np.float32), np.empty(at.shape[1], np.int32)
    for coordinates, size in zip(at, image.shape, strict=True):
        np.rint(coordinates, out=rounded)
        np.copyto(index, rounded, casting="unsafe")
        inside &= index.view(np.uint32) < np.uint32(size)  # a negative index is large as an unsigned one
        flat *= np.int32(size)
        flat += index
    flat *= inside
    values: npt.NDArray[Voxel] = image.ravel().take(flat)
    np.multiply(values, inside, out=values)
    return values
