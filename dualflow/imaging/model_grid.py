"""The model grid: RAS-aligned, isotropic and centred on the template's brain."""

from __future__ import annotations

from functools import cache

import numpy as np

from dualflow.config import PreprocessConfig
from dualflow.imaging.geometry import Grid, centred_affine
from dualflow.imaging.mni_template import BRAIN_THRESHOLD, template_map


@cache
def template_centre() -> tuple[float, float, float]:
    """World coordinates of the middle of the bounding box of the template's brain."""
    image = template_map("t1")
    inside = image.array > BRAIN_THRESHOLD
    ends = [np.flatnonzero(inside.any(axis=axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))]
    x, y, z = (image.affine @ np.append([(first + last) / 2 for first, last in ends], 1))[:3]
    return float(x), float(y), float(z)


def model_grid(config: PreprocessConfig) -> Grid:
    """Affine and shape of the model grid."""
    return centred_affine(np.array(template_centre()), config.spacing_mm, config.shape), config.shape
