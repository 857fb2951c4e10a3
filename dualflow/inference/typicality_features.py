"""Description of a source on the model grid: intensities, texture, mask, local contrast, and a coarse image.

A linear change of all intensities changes nothing. Lengths are in mm, so they do not depend on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool3d

from dualflow.arrays import Bools, Doubles, Singles
from dualflow.flows.harmonise import mapped, quantiles
from dualflow.imaging.intensity import normalise

Vector = Doubles

PROBABILITIES = np.linspace(0.02, 0.98, 19)
"""Probabilities of the quantiles that describe the intensities."""
BLOCK_MM, MAP_MM = 12.0, 4.0
"""Edge of the blocks of local contrast, and spacing of the coarse image; finer grids are averaged."""
EROSION_MM, FINE_MM = 8.0, 2.8
"""Distance of the texture's voxels from the edge of the brain, and smoothing that separates fine texture."""
MIN_VOXELS, MIN_SLICES = 500, 5
"""Fewest voxels and slices that texture is computed from."""
SLICE_SHARE = 0.35
"""Slices count whose area is at least this share of the largest slice's."""
SLICE_WINDOW = 5
"""Slices of the median that the roughness of a slice is compared with."""
_FLOOR = 1e-6


@dataclass(frozen=True)
class ScanFeatures:
    """Description of one scan.

    Attributes:
        vectors: features by name: `quantiles` of the intensities, `texture` after matching of histograms, size, place
            and extent of the `mask`, and standard deviations within blocks, `local_contrast`.
        image: histogram-matched source at a spacing of about MAP_MM `[D, H, W]`.
        inside: brain mask of that size.
    """

    vectors: dict[str, Vector]
    image: Singles
    inside: Bools


def reference_quantiles(sources: Sequence[Singles], masks: Sequence[Bools]) -> torch.Tensor:
    """Mean quantiles `[Q]` of the training sources, to which histograms are matched."""
    curves = [_curve(_scaled(source, mask), mask) for source, mask in zip(sources, masks, strict=True)]
    return torch.stack(curves).mean(dim=0)


def describe(source: Singles, mask: Bools, spacing_mm: float, reference: torch.Tensor) -> ScanFeatures:
    """Describe a source `[D, H, W]` by its voxels in the mask.

    Raises:
        IntensityError: the source has no contrast, or the mask is empty.
    """
    scaled = _scaled(source, mask)
    matched = mapped(torch.from_numpy(scaled), _curve(scaled, mask), reference).numpy() * mask
    size = max(round(BLOCK_MM / spacing_mm), 2)
    variance = _block_means(matched**2, size) - _block_means(matched, size) ** 2
    factor = map_factor(spacing_mm)
    share = _block_means(mask.astype(np.float32), factor)
    vectors = {
        "quantiles": np.quantile(scaled[mask], PROBABILITIES),
        "texture": _texture(matched, mask, spacing_mm),
        "mask": _extent(mask),
        "local_contrast": np.sqrt(np.maximum(variance, 0)).ravel().astype(np.float64),
    }
    image = (_block_means(matched, factor) / np.maximum(share, _FLOOR) * (share > 0.5)).astype(np.float32)
    return ScanFeatures(vectors, image, share > 0.5)


def map_factor(spacing_mm: float) -> int:
    """Voxels of the model grid along an edge of a voxel of the coarse image."""
    return max(round(MAP_MM / spacing_mm), 1)


def _scaled(source: Singles, mask: Bools) -> Singles:
    return normalise(source, mask, "robust")[0]


def _curve(scaled: Singles, mask: Bools) -> torch.Tensor:
    return quantiles(torch.from_numpy(scaled)[None], torch.from_numpy(np.ascontiguousarray(mask)))[0]


def _block_means(image: Singles, size: int) -> Singles:
    """Mean of each block of `size` voxels a side; blocks at the end may be smaller."""
    tensor = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
    result: Singles = avg_pool3d(tensor, size, ceil_mode=True, count_include_pad=False)[0].numpy()
    return result


def _extent(mask: Bools) -> Vector:
    """Log size, centre and log extent along each axis, in voxels."""
    places = np.argwhere(mask)
    return np.concatenate([[np.log(len(places))], places.mean(axis=0), np.log(places.std(axis=0) + _FLOOR)])


def _texture(matched: Singles, mask: Bools, spacing_mm: float) -> Vector:
    """Log energies of the first and second derivatives by axis, jumps between slices, and log fine texture."""
    inner = ndimage.binary_erosion(mask, iterations=max(round(EROSION_MM / spacing_mm), 1))
    inner = inner if inner.sum() >= MIN_VOXELS else mask
    values = []
    for axis in range(3):
        first = np.diff(matched, axis=axis, append=0)
        second = ndimage.convolve1d(matched, np.array([-1.0, 2.0, -1.0]), axis=axis) ** 2
        values += [np.log(np.mean(first[inner] ** 2) + _FLOOR), np.log(np.mean(second[inner]) + _FLOOR)]
        values += _slice_jumps(matched, second, inner, axis)
    fine = np.abs(matched - ndimage.gaussian_filter(matched, FINE_MM / spacing_mm))[inner]
    return np.array([*values, np.log(np.median(fine) + _FLOOR)])


def _slice_jumps(matched: Singles, roughness: Singles, inner: Bools, axis: int) -> list[float]:
    """Largest log kink of the slices' means along an axis, and largest log roughness relative to nearby slices."""
    plane = tuple(other for other in range(3) if other != axis)
    area = inner.sum(axis=plane)
    shown = area >= max(SLICE_SHARE * area.max(), 1)
    if shown.sum() < MIN_SLICES:
        return [0.0, 0.0]
    means, rough = ((image * inner).sum(axis=plane)[shown] / area[shown] for image in (matched, roughness))
    kink = np.abs(np.diff(means, 2)).max()
    relative = (rough + _FLOOR) / (ndimage.median_filter(rough, SLICE_WINDOW) + _FLOOR)
    return [float(np.log(kink + _FLOOR)), float(np.log(relative.max()))]
