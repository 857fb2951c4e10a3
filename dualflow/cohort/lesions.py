"""Focal lesions of the hard law: a core that has become fluid, and a penumbra of low uptake that the MR does not show.

Places and sizes are invented; they follow chronic cortical infarcts, with 1 to 8 mL of lost tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.special import expit

from dualflow.arrays import Doubles, Singles
from dualflow.cohort.people import Person
from dualflow.cohort.template import template
from dualflow.cohort.uptake import CEREBRAL_LOBES, regions

CORE_LOSS = 0.95
"""Share of the tissue in the core that has become fluid."""
EDGE_MM = 0.8
"""Width of the core's edge."""
PENUMBRA_DEPTH, PENUMBRA_MM = 0.45, 10.0
"""Largest relative reduction of uptake around the core, and the distance over which it fades."""
_MEDIAL = ("Hippocampus", "Amygdala", "ctx-insula")


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid in the template world.

    Attributes:
        centre: mm [3].
        shape: matrix [3, 3] of determinant 1 that takes the ellipsoid to a ball.
        radius: radius of that ball in mm.
        ml: tissue that it replaces in mL, at the template's size.
    """

    centre: Doubles
    shape: Doubles
    radius: float
    ml: float = 0.0

    @property
    def side(self) -> str:
        """Hemisphere, `left` or `right`."""
        return "left" if self.centre[0] < 0 else "right"

    def distance(self, points: Singles) -> Singles:
        """Approximate distance in mm [N] of template-world points [3, N] from the surface; negative inside."""
        offset = points - self.centre.astype(np.float32)[:, None]
        return np.asarray(np.linalg.norm(self.shape.astype(np.float32) @ offset, axis=0) - np.float32(self.radius))


def draw_lesions(person: Person) -> tuple[Lesion, ...]:
    """Draw a person's lesions: none in most people, one to three in others, more often at a high age."""
    rng = person.generator("lesions")
    if rng.random() > np.clip(0.38 + 0.012 * (person.age - 71), 0.1, 0.75):
        return ()
    return tuple(_lesion(rng) for _ in range(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15))))


def core_share(lesions: Sequence[Lesion], points: Singles) -> Singles:
    """Share of tissue [N] at template-world points [3, N] that has become fluid; it shows in the MR."""
    intact = np.ones(points.shape[1], np.float32)
    for lesion in lesions:
        intact *= 1 - np.float32(CORE_LOSS) * expit(-lesion.distance(points) / np.float32(EDGE_MM))
    return np.asarray(1 - intact, np.float32)


def viability(lesions: Sequence[Lesion], points: Singles) -> Singles:
    """Factor on the uptake of the remaining tissue [N] at points [3, N]: below 1 in a penumbra."""
    factor = np.ones(points.shape[1], np.float32)
    for lesion in lesions:
        beyond = np.maximum(lesion.distance(points), 0) / np.float32(PENUMBRA_MM)
        factor *= 1 - np.float32(PENUMBRA_DEPTH) * np.exp(-(beyond**2))
    return factor


def _lesion(rng: np.random.Generator) -> Lesion:
    places = _places()
    centre = places[rng.integers(len(places))] + rng.uniform(-1, 1, 3)
    axes = np.exp(rng.normal(0, 0.2, 3))
    rotation = Rotation.random(rng=rng).as_matrix()
    shape = np.diag(axes / np.cbrt(axes.prod())) @ rotation
    # About a fifth of the ellipsoid lies in sulci and outside the brain.
    volume = 1.25 * np.exp(rng.uniform(np.log(1.2), np.log(8.0)))
    lesion = Lesion(centre, shape, radius=float(np.cbrt(3000 * volume / (4 * np.pi))))
    return replace(lesion, ml=_lost_ml(lesion))


def _lost_ml(lesion: Lesion) -> float:
    base = template()
    reach = int(1.8 * lesion.radius) + 4
    corner = np.round(base.brain.index(lesion.centre)).astype(int) - reach
    box = tuple(slice(max(c, 0), c + 2 * reach + 1) for c in corner)
    tissue = base.grey[box] + base.white[box]
    voxels = np.indices(tissue.shape, dtype=np.float32).reshape(3, -1)
    start = np.array([[part.start] for part in box], np.float32)
    points = voxels + start + np.asarray(base.brain.origin, np.float32)[:, None]
    return float((core_share((lesion,), points) * tissue.reshape(-1)).sum() / 1000)


@cache
def _places() -> Doubles:
    """Possible centres [N, 3] in mm: cerebral cortex and the white matter below it, off the midline."""
    base, table = template(), regions()
    part = (slice(None, None, 2),) * 3
    cerebral = np.asarray(table["lobe"].isin(CEREBRAL_LOBES) & ~table["merged"].isin(_MEDIAL))[base.grey_region[part]]
    above = np.asarray(table["merged"] == "Cerebral-White-Matter")[base.white_region[part]]
    inside = cerebral & above & base.mask[part] & ((base.grey + base.white)[part] > 0.8) & (base.exposure[part] > 0.02)
    points = 2.0 * np.argwhere(inside) + np.asarray(base.brain.origin)
    return np.asarray(points[np.abs(points[:, 0]) > 18], np.float64)
