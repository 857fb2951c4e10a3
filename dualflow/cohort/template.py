"""The template of all simulated anatomies: ICBM152 tissue, Desikan-Killiany regions and a simple head.

Fonov et al. (2011), Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54:313-327, as
installed with nilearn. The head outside the brain (skull, scalp, face, neck) is drawn from distances and ellipsoids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dualflow.arrays import Bools, Singles
from dualflow.cohort.uptake import regions
from dualflow.imaging.atlas import desikan_killiany
from dualflow.imaging.mni_template import BRAIN_THRESHOLD, template_map

AIR, HEAD, BRAIN = 0, 1, 2


@dataclass(frozen=True)
class Frame:
    """An axis-aligned RAS grid: world mm of voxel 0 and voxel edge in mm."""

    origin: tuple[float, float, float]
    spacing: float

    def index(self, points: npt.NDArray[Any]) -> Singles:
        """Voxel coordinates [3, ...] of world points [3, ...]."""
        origin = np.reshape(np.asarray(self.origin, np.float32), (3,) + (1,) * (points.ndim - 1))
        return np.asarray((points - origin) / np.float32(self.spacing), dtype=np.float32)


@dataclass(frozen=True)
class Template:
    """Maps of the template's brain (1 mm) and head (2 mm).

    Attributes:
        brain: frame of the brain maps [197, 233, 189].
        grey: grey-matter fraction.
        white: white-matter fraction.
        fluid: fluid fraction, including the space around the brain.
        exposure: fluid in the neighbourhood, 0..1: where cortical thinning starts.
        detail: T1 signal of the real template that the tissue fractions do not explain; white matter is 1.
        mask: the brain mask.
        grey_region: row of `uptake.regions()` that grey matter at a voxel belongs to.
        white_region: the same for white matter.
        head: frame of the head maps.
        soft: muscle and skin fraction outside the brain.
        fat: fat and marrow fraction outside the brain.
        zone: AIR, HEAD or BRAIN, which selects the maps that apply.
        ventricles: share of the lateral ventricles on a 2 mm grid with the brain's origin.
        pull: displacement fields [3, ...] on the coarse grid, of unit maximum, which point into a structure.
    """

    brain: Frame
    grey: Singles
    white: Singles
    fluid: Singles
    exposure: Singles
    detail: Singles
    mask: Bools
    grey_region: npt.NDArray[np.int16]
    white_region: npt.NDArray[np.int16]
    head: Frame
    soft: Singles
    fat: Singles
    zone: npt.NDArray[np.uint8]
    ventricles: Singles
    pull: dict[str, Singles]


COARSE = Frame((-108.0, -152.0, -144.0), 4.0)
COARSE_SHAPE = (55, 68, 67)
_HEAD = Frame((-108.0, -152.0, -144.0), 2.0)
_HEAD_SHAPE = (109, 135, 133)
# T1 signal of tissue in the template's own contrast, on a scale where white matter is 1.
_GREY_SIGNAL, _FLUID_SIGNAL = 0.66, 0.15
_SHARPEN = 1.5


@cache
def template() -> Template:
    """Make the template once per process (a few seconds)."""
    x, y, z = (float(value) for value in template_map("t1").affine[:3, 3])
    brain = Frame((x, y, z), 1.0)
    signal = _contiguous("t1")
    mask = signal > BRAIN_THRESHOLD
    grey, white, fluid = _tissue(mask)
    labels, names = _labels(brain, mask.shape)
    order = {name: row for row, name in enumerate(regions().index)}
    rows = {label: order[name] for label, name in names.items() if name in order}
    is_white = {label for label, name in names.items() if name.endswith("White-Matter")}
    # The template's fluid and white matter lie at 0.35 and 0.86; a line takes them to 0.15 and 1.
    signal = 1 + (signal - 0.86) * np.float32((1 - _FLUID_SIGNAL) / (0.86 - 0.35))
    detail = signal - (_GREY_SIGNAL * grey + white + _FLUID_SIGNAL * fluid)
    soft, fat, zone = _head(brain, mask)
    return Template(
        brain=brain,
        grey=grey,
        white=white,
        fluid=fluid,
        exposure=ndimage.gaussian_filter(fluid, 2.0),
        detail=np.where(mask, np.clip(detail, -0.25, 0.25) * 0.7, 0).astype(np.float32),
        mask=mask,
        grey_region=_nearest(labels, {label: row for label, row in rows.items() if label not in is_white}),
        white_region=_nearest(labels, {label: row for label, row in rows.items() if label in is_white}),
        head=_HEAD,
        soft=soft,
        fat=fat,
        zone=zone,
        ventricles=ndimage.gaussian_filter(np.isin(labels, (4, 43))[::2, ::2, ::2].astype(np.float32), 1.0),
        pull={name: _pull(labels, brain, structure, width) for name, (structure, width) in _PULLED.items()},
    )


def _contiguous(name: str) -> Singles:
    """A map of the template in C order, like every array that is computed from it."""
    return np.ascontiguousarray(template_map(name).array)


def _tissue(mask: Bools) -> tuple[Singles, Singles, Singles]:
    """Grey, white and fluid fractions; sharpened, because averaging has blurred the template."""
    grey = _contiguous("gm") * mask
    white = _contiguous("wm") * mask
    intracranial = ndimage.gaussian_filter(ndimage.binary_dilation(mask, iterations=2).astype(np.float32), 0.7)
    fluid = np.clip(intracranial - grey - white, 0, None)
    powers = [np.power(part, np.float32(_SHARPEN)) for part in (grey, white, fluid)]
    share = intracranial / np.maximum(sum(powers), np.float32(1e-6))
    return powers[0] * share, powers[1] * share, powers[2] * share


def _labels(brain: Frame, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint16], dict[int, str]]:
    """The atlas on the brain grid: a shift, because both are 1 mm RAS on whole millimetres."""
    atlas, names = desikan_killiany()
    shift = np.round(atlas.affine[:3, 3] - np.asarray(brain.origin)).astype(int)
    labels = np.zeros(shape, np.uint16)
    labels[tuple(slice(s, s + n) for s, n in zip(shift, atlas.shape, strict=True))] = np.asarray(atlas.dataobj)
    return labels, names


def _nearest(labels: npt.NDArray[np.uint16], rows: dict[int, int]) -> npt.NDArray[np.int16]:
    """Give every voxel the row of the nearest voxel that carries one of the labels."""
    table = np.full(int(labels.max()) + 1, -1, np.int16)
    table[list(rows)] = list(rows.values())
    row = table[labels]
    # Nearest at 2 mm, then repeated: four times faster, and below the scanners' resolution.
    coarse = row[::2, ::2, ::2]
    nearest = ndimage.distance_transform_edt(coarse < 0, return_distances=False, return_indices=True)
    filled = coarse[tuple(nearest)].repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(map(slice, labels.shape))]
    return np.where(row >= 0, row, filled).astype(np.int16)


def _pull(labels: npt.NDArray[np.uint16], brain: Frame, structure: Sequence[int], width: float) -> Singles:
    """Field [3, *COARSE_SHAPE] of unit maximum that points into a structure and fades over `width` mm."""
    inside = np.isin(labels, structure)[::2, ::2, ::2].astype(np.float32)
    smooth = ndimage.gaussian_filter(inside, width / 2)
    # The gradient of the logarithm is about as strong at thin horns as at the thick body.
    field = np.stack([np.gradient(np.log(smooth + 0.05 * smooth.max()), axis=axis) for axis in range(3)])
    field /= np.linalg.norm(field, axis=0).max()
    at = Frame(brain.origin, 2.0).index(coarse_points())
    return np.stack([ndimage.map_coordinates(part, at, order=1, mode="constant") for part in field])


def coarse_points() -> Singles:
    """World points [3, *COARSE_SHAPE] of the grid that displacements are defined on."""
    axes = [o + COARSE.spacing * np.arange(n) for o, n in zip(COARSE.origin, COARSE_SHAPE, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _head(brain: Frame, mask: Bools) -> tuple[Singles, Singles, npt.NDArray[np.uint8]]:
    """Soft tissue, fat and zones of a head drawn around the brain on the 2 mm grid."""
    brain_mask = np.zeros(_HEAD_SHAPE, bool)
    corner = ((np.asarray(brain.origin) - np.asarray(_HEAD.origin)) / 2).astype(int)
    part = mask[::2, ::2, ::2]
    brain_mask[tuple(slice(c, c + n) for c, n in zip(corner, part.shape, strict=True))] = part
    distance = 2 * ndimage.distance_transform_edt(~brain_mask).astype(np.float32)
    axes = np.ogrid[tuple(slice(0, n) for n in _HEAD_SHAPE)]
    x, y, z = (o + 2.0 * axis for o, axis in zip(_HEAD.origin, axes, strict=True))

    def ellipsoid(centre: Sequence[float], radii: Sequence[float]) -> Bools:
        (u, v, w), (a, b, c) = centre, radii
        return np.asarray(((x - u) / a) ** 2 + ((y - v) / b) ** 2 + ((z - w) / c) ** 2 < 1)

    neck = (((x / 60) ** 2 + ((y + 28) / 62) ** 2) < 1) & (z < -50)
    skull = distance < 9.5
    body = (distance < 15) | neck
    for centre, radii in _FACE:
        body |= ellipsoid(centre, radii)
    body = ndimage.binary_closing(body, iterations=4) | body
    depth = 2 * ndimage.distance_transform_edt(body).astype(np.float32)
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(_HEAD_SHAPE), (1.5, 3.0, 3.0))
    texture /= texture.std()
    outside = body & ~skull
    fat = np.where(outside & (depth > 2.5) & ((depth < 7) | (texture > 0.9)), 1.0, 0.0)
    fat[skull & (distance > 4.5) & (distance < 7.5)] = 0.3
    soft = np.where(outside, 1 - fat, 0.0)
    for centre, radii in _AIR:
        hollow = ellipsoid(centre, radii) & outside & (texture < 1)
        soft[hollow] = fat[hollow] = 0
    for x_eye in (-33, 33):
        orbit, eye = ellipsoid((x_eye, 66, -40), (19, 22, 18)), ellipsoid((x_eye, 72, -40), (12, 12, 12))
        fat[orbit & outside], soft[orbit & outside] = 0.9, 0.1
        fat[eye & outside], soft[eye & outside] = 0, 0.5
    spine = ((x / 17) ** 2 + ((y + 44) / 17) ** 2 < 1) & (z < -74) & outside
    cord = ((x / 6) ** 2 + ((y + 44) / 6) ** 2 < 1) & spine
    soft[spine], fat[spine] = 0, 0.35
    soft[cord], fat[cord] = 1.5, 0
    zone = np.where(ndimage.binary_dilation(body, iterations=2), HEAD, AIR).astype(np.uint8)
    zone[distance < 6] = BRAIN
    return (
        ndimage.gaussian_filter(soft.astype(np.float32), 0.5),
        ndimage.gaussian_filter(fat.astype(np.float32), 0.5),
        zone,
    )


_FACE = (
    ((0, 30, -58), (64, 74, 62)),
    ((0, 45, -95), (46, 48, 34)),
    ((0, 106, -52), (13, 16, 20)),
)
_AIR = (
    ((0, 66, -62), (12, 32, 18)),
    ((0, 82, -22), (16, 8, 10)),
    ((-32, 58, -68), (13, 16, 14)),
    ((32, 58, -68), (13, 16, 14)),
    ((0, 22, -92), (14, 14, 20)),
    ((0, 10, -130), (9, 9, 36)),
)
_PULLED: dict[str, tuple[Sequence[int], float]] = {
    "ventricles": ((4, 5, 14, 43, 44), 9.0),
    "left hippocampus": ((17, 18), 6.0),
    "right hippocampus": ((53, 54), 6.0),
}
