"""Shape of a brain mask: what tells a whole brain from one that is cut, or that took in neck, eyes or skull.

Two figures need the mask alone, so that a gross failure is refused before anything rests on it; the others compare it
with the template's brain once they are aligned. All are measured on copies of some millimetres.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label, map_coordinates
from scipy.spatial import ConvexHull

from dualflow.errors import IntensityError
from dualflow.imaging.geometry import Affine, BoolArray, Volume, apply_map, resample, spacing_of
from dualflow.imaging.registration import template

WORKING_MM = 3.0
# What is thinner than twice this is no brain: leaks along the dura, optic nerves, stray islands.
OPENING_MM = 8.0
# What an affine map leaves between two healthy brains stays below this.
TOLERANCE_MM = 8.0
BOUNDS = {
    "solidity": ("share of its convex hull that it fills", 0.65, 1.1),
    "core": ("share that is thicker than 16 mm, in one piece,", 0.85, 1.0),
    "outside": ("share clearly outside the template's brain", 0.0, 0.1),
    "missing": ("share of the template's inner brain that it lacks", 0.0, 0.1),
    "symmetry": ("Dice with its mirror image", 0.8, 1.0),
    "stretch": ("largest over smallest scale to the template", 1.0, 1.7),
}
"""By figure: what it is, and the least and the most that a mask of a brain has, however its owner is."""


@dataclass(frozen=True)
class Shape:
    """Figures of a mask by itself.

    Attributes:
        solidity: its volume over that of its convex hull.
        core: share of it that is left after an opening by a ball, in one piece.
    """

    solidity: float
    core: float


@dataclass(frozen=True)
class Likeness:
    """Figures of a mask aligned with the template's brain.

    Attributes:
        outside: share of it that lies clearly outside the template's brain.
        missing: share of the template's inner brain that it lacks.
        symmetry: Dice of it and its mirror image.
        stretch: largest over smallest scale of the alignment.
    """

    outside: float
    missing: float
    symmetry: float
    stretch: float


def shape_of(mask: BoolArray, affine: Affine) -> Shape:
    """Measure a mask `[I, J, K]` that is not empty."""
    copy = thinned(mask, affine)
    inside, edges = copy.array > 0, spacing_of(copy.affine)
    return Shape(_solidity(inside), _core(inside, edges))


def likeness_of(mask: BoolArray, affine: Affine, to_template: Affine) -> Likeness:
    """Compare a mask `[I, J, K]`, aligned by the points map `to_template`, with the template's brain."""
    copy, depth = thinned(mask, affine), _template_depth()
    (_, grid), to_mask = template(), np.linalg.inv(to_template)
    mapped, mirrored = (
        resample(copy, *grid.grid, points_map=to_mask @ side) > 0.5 for side in (np.eye(4), np.diag([-1.0, 1, 1, 1]))
    )
    # At the mask's own voxels, for the template's grid may end before a neck does.
    to_grid = np.linalg.inv(grid.affine) @ to_template @ copy.affine
    places = apply_map(to_grid, np.argwhere(copy.array > 0).astype(np.float64))
    depths = map_coordinates(depth, places.T, order=1, cval=-np.inf)
    inner = depth > TOLERANCE_MM
    scales = np.linalg.svd(to_template[:3, :3], compute_uv=False)
    return Likeness(
        outside=float((depths < -TOLERANCE_MM).mean()),
        missing=float((inner & ~mapped).sum() / inner.sum()),
        symmetry=float(2 * (mapped & mirrored).sum() / max(1, mapped.sum() + mirrored.sum())),
        stretch=float(scales[0] / scales[-1]),
    )


def check(found: Shape | Likeness, path: Path) -> None:
    """Refuse a brain mask whose figures no brain has; `path` is the scan's or the mask's.

    Raises:
        IntensityError: a figure is out of bounds.
    """
    for name, value in asdict(found).items():
        what, least, most = BOUNDS[name]
        if not least <= value <= most:
            raise IntensityError(
                f"{path}: has a brain mask whose {name} ({what}) is {value:.2f}, expected {least:g} to {most:g}; look "
                "at the scan for a cut or strange field of view, or give a mask of your own in study.masks"
            )


def figures(*found: Shape | Likeness) -> dict[str, float]:
    """The figures by name, as the record of a scan has them."""
    return {name: round(value, 4) for one in found for name, value in asdict(one).items()}


def thinned(mask: BoolArray, affine: Affine) -> Volume:
    """A copy of every n-th voxel, about `WORKING_MM` apart, with a rim of background."""
    steps = [max(1, round(WORKING_MM / edge)) for edge in spacing_of(affine)]
    kept = np.pad(mask[:: steps[0], :: steps[1], :: steps[2]], 1).astype(np.float32)
    coarse = affine @ np.diag([*steps, 1.0])
    coarse[:3, 3] -= coarse[:3, :3].sum(axis=1)
    return Volume(kept, coarse)


def _solidity(inside: BoolArray) -> float:
    # The ends of each line of voxels are all that a hull needs, with the corners that voxels have.
    lines = inside.any(axis=0)
    first, last = inside.argmax(axis=0), inside.shape[0] - 1 - inside[::-1].argmax(axis=0)
    j, k = np.nonzero(lines)
    ends = np.concatenate([np.column_stack([side[lines], j, k]) for side in (first, last)])
    corners = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, 8).T
    hull = ConvexHull((ends[:, None] + corners).reshape(-1, 3))
    return float(inside.sum() / hull.volume)


def _core(inside: BoolArray, edges: NDArray[np.floating]) -> float:
    pieces, count = label(distance_transform_edt(inside, sampling=edges) > OPENING_MM)
    if not count:
        return 0.0
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    opened = inside & (distance_transform_edt(pieces != largest, sampling=edges) <= OPENING_MM)
    return float(opened.sum() / inside.sum())


@cache
def _template_depth() -> NDArray[np.floating]:
    """Distance in mm to the surface of the template's brain, negative outside."""
    _, mask = template()
    inside, edges = mask.array > 0, spacing_of(mask.affine)
    inward, outward = (distance_transform_edt(side, sampling=edges) for side in (inside, ~inside))
    return np.asarray(inward - outward)
