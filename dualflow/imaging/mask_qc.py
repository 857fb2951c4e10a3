"""Quality metrics of a brain mask, which detect a cut brain, or a mask that includes neck, eyes or skull.

Two metrics need the mask alone, so gross failures are detected before registration. The others compare the mask
with the template's brain after alignment. All are computed on downsampled copies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial import ConvexHull

from dualflow.arrays import Bools
from dualflow.errors import IntensityError
from dualflow.imaging.components import largest_component
from dualflow.imaging.geometry import Affine, Volume, resample
from dualflow.imaging.mni_template import coarse_template

WORKING_MM = 3.0
# Parts thinner than twice this are not brain: leaks along the dura, optic nerves, islands.
OPENING_MM = 8.0
# Residual distance between two healthy brains after an affine alignment.
TOLERANCE_MM = 8.0
BOUNDS = {
    "solidity": ("share of its convex hull that it fills", 0.65, 1.1),
    "core": ("share that is thicker than 16 mm, in one piece,", 0.85, 1.0),
    "outside": ("share clearly outside the template's brain", 0.0, 0.1),
    "missing": ("share of the template's inner brain that it lacks", 0.0, 0.1),
    "symmetry": ("Dice with its mirror image", 0.8, 1.0),
    "stretch": ("largest over smallest scale to the template", 1.0, 1.7),
}
"""Description and plausible range of each metric, over all subjects."""


@dataclass(frozen=True)
class MaskShape:
    """Metrics of a mask without the template.

    Attributes:
        solidity: its volume over that of its convex hull.
        core: share of its largest component after opening by a ball.
    """

    solidity: float
    core: float


@dataclass(frozen=True)
class TemplateAgreement:
    """Metrics of a mask aligned with the template's brain.

    Attributes:
        outside: share of the mask clearly outside the template's brain.
        missing: share of the template's inner brain that the mask lacks.
        symmetry: Dice of the mask and its mirror image.
        stretch: largest over smallest scale of the alignment.
    """

    outside: float
    missing: float
    symmetry: float
    stretch: float


def measure_shape(mask: Bools, affine: Affine) -> MaskShape:
    """Measure a mask `[I, J, K]` that is not empty."""
    small = downsampled(mask, affine)
    inside, edges = small.array > 0, voxel_sizes(small.affine)
    return MaskShape(_solidity(inside), _core(inside, edges))


def compare_with_template(mask: Bools, affine: Affine, to_template: Affine) -> TemplateAgreement:
    """Compare a mask `[I, J, K]`, aligned by the points map `to_template`, with the template's brain."""
    small, depth = downsampled(mask, affine), _template_depth()
    (_, grid), to_mask = coarse_template(), np.linalg.inv(to_template)
    mapped, mirrored = (
        resample(small, *grid.grid, points_map=to_mask @ flip) > 0.5 for flip in (np.eye(4), np.diag([-1.0, 1, 1, 1]))
    )
    # Sampled at the mask's voxels, because the template's grid may end above the neck.
    to_grid = np.linalg.inv(grid.affine) @ to_template @ small.affine
    points = apply_affine(to_grid, np.argwhere(small.array > 0).astype(np.float64))
    depths = map_coordinates(depth, points.T, order=1, cval=-np.inf)
    inner = depth > TOLERANCE_MM
    scales = np.linalg.svd(to_template[:3, :3], compute_uv=False)
    return TemplateAgreement(
        outside=float((depths < -TOLERANCE_MM).mean()),
        missing=float((inner & ~mapped).sum() / inner.sum()),
        symmetry=float(2 * (mapped & mirrored).sum() / max(1, mapped.sum() + mirrored.sum())),
        stretch=float(scales[0] / scales[-1]),
    )


def check_metrics(metrics: MaskShape | TemplateAgreement, path: Path) -> None:
    """Check that the metrics of a brain mask are plausible; `path` is the scan's or the mask's.

    Raises:
        IntensityError: a metric is out of bounds.
    """
    for name, value in asdict(metrics).items():
        description, low, high = BOUNDS[name]
        if not low <= value <= high:
            raise IntensityError(
                f"{path}: has a brain mask whose {name} ({description}) is {value:.2f}, expected {low:g} to {high:g}; "
                "check the scan for a cut or unusual field of view, or give a mask in study.masks or --masks"
            )


def mask_metrics(shape: MaskShape, agreement: TemplateAgreement) -> dict[str, float]:
    """All metrics by name, rounded, as in the record of a scan."""
    return {name: round(value, 4) for name, value in (asdict(shape) | asdict(agreement)).items()}


def downsampled(mask: Bools, affine: Affine) -> Volume:
    """Every n-th voxel, about `WORKING_MM` apart, with a rim of background."""
    steps = [max(1, round(WORKING_MM / edge)) for edge in voxel_sizes(affine)]
    samples = np.pad(mask[:: steps[0], :: steps[1], :: steps[2]], 1).astype(np.float32)
    coarse = affine @ np.diag([*steps, 1.0])
    coarse[:3, 3] -= coarse[:3, :3].sum(axis=1)
    return Volume(samples, coarse)


def _solidity(inside: Bools) -> float:
    # The corners of the first and last voxel of each line span the hull.
    lines = inside.any(axis=0)
    first, last = inside.argmax(axis=0), inside.shape[0] - 1 - inside[::-1].argmax(axis=0)
    j, k = np.nonzero(lines)
    ends = np.concatenate([np.column_stack([i[lines], j, k]) for i in (first, last)])
    offsets = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, 8).T
    hull = ConvexHull((ends[:, None] + offsets).reshape(-1, 3))
    return float(inside.sum() / hull.volume)


def _core(inside: Bools, edges: NDArray[np.floating]) -> float:
    thick = largest_component(distance_transform_edt(inside, sampling=edges) > OPENING_MM)
    if not thick.any():
        return 0.0
    opened = inside & (distance_transform_edt(~thick, sampling=edges) <= OPENING_MM)
    return float(opened.sum() / inside.sum())


@cache
def _template_depth() -> NDArray[np.floating]:
    """Distance in mm to the surface of the template's brain, negative outside."""
    _, mask = coarse_template()
    inside, edges = mask.array > 0, voxel_sizes(mask.affine)
    inward, outward = (distance_transform_edt(side, sampling=edges) for side in (inside, ~inside))
    return np.asarray(inward - outward)
