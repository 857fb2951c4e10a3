"""Synthetic brains on a small grid: smooth random anatomy in an ellipsoid, with fluid, grey and white matter."""

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (24, 28, 24)
SPACING_MM = 4.0


def brain(index, shape=SHAPE):
    """Return a normalised source `[D, H, W]` and its mask; `index` determines the person."""
    rng = np.random.default_rng([71, index])
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    warp = [1.5 * gaussian_filter(rng.normal(size=shape), 4) for _ in range(3)]
    scale = 0.8 * np.exp(rng.normal(0, 0.02, 3))
    x, y, z = ((axis + move) / size + rng.normal(0, 0.01) for axis, move, size in zip(axes, warp, scale, strict=True))
    # Narrower in front and flatter below, so that flips show.
    radius = np.sqrt((x * (1 + 0.25 * y)) ** 2 + y**2 + (z * (1 - 0.25 * z)) ** 2)
    mask = radius < 1
    # Fluid in the middle and at the edge, and tissue that differs from front to back and from top to bottom.
    tissue = 0.35 + 0.5 / (1 + np.exp((radius - 0.7) / 0.06)) + 0.15 * y + 0.15 * z
    source = tissue - 0.6 * np.exp(-((x / 0.25) ** 2 + ((y - 0.1) / 0.4) ** 2 + ((z - 0.1) / 0.25) ** 2))
    source = source + 0.05 * gaussian_filter(rng.normal(size=shape), 1.2) + 0.02 * rng.normal(size=shape)
    source = np.clip(source, 0.01, None) ** np.exp(rng.normal(0, 0.05))
    return np.where(mask, source, 0).astype(np.float32), mask


def with_lesion(source, mask, centre, radius=1.8, level=0.1):
    """Return the source with a ball of another intensity."""
    offset = np.indices(source.shape) - np.reshape(centre, (3, 1, 1, 1))
    return np.where((np.linalg.norm(offset, axis=0) < radius) & mask, np.float32(level), source)
