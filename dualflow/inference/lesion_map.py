"""Lesion map: signed deviation of each voxel from what principal components of the training people can explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

from dualflow.arrays import Bools, Doubles, Singles

SCALES_MM = (4.0, 8.0)
"""Standard deviations of the smoothing of the residuals."""
COMPONENTS = 30
"""Most principal components; few people have half as many as there are people."""
COVERAGE = 0.95
"""Share of training people whose brain mask covers a voxel before it counts."""
SPREAD_MM, SPREAD_FLOOR = 6.0, 0.5
"""Smoothing of the robust standard deviation, and its floor relative to the brain's median."""
CLIP = 3.0
"""Largest deviation that counts in the scale of a person's own map."""
_TINY = 1e-6


def principal_components(rows: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean `[V]` and first principal components `[K, V]` of `rows` `[N, V]`, with N far below V.

    K is `count`, at most half of N.
    """
    count = min(count, len(rows) // 2)
    mean = rows.mean(axis=0)
    centred = rows - mean
    _, vectors = linalg.eigh(centred @ centred.T, subset_by_index=(len(rows) - count, len(rows) - 1))
    components = vectors.T @ centred
    return mean, components / np.maximum(np.linalg.norm(components, axis=1, keepdims=True), _TINY)


def residual(row: NDArray[Any], mean: NDArray[Any], components: NDArray[Any]) -> NDArray[Any]:
    """What the components leave of a row `[V]`."""
    centred = row - mean
    return np.asarray(centred - (components @ centred) @ components)


@dataclass(frozen=True)
class Deviation:
    """A scan's lesion map.

    Attributes:
        maps: signed deviation at each scale `[S, D, H, W]`, in the person's own standard deviations.
        peaks: largest bright and dark deviation at each scale, `[2 S]`.
    """

    maps: Singles
    peaks: Doubles

    def strongest(self) -> Singles:
        """The deviation of the scale that has the larger absolute value, by voxel `[D, H, W]`."""
        scale = np.abs(self.maps).argmax(axis=0)
        return np.asarray(np.take_along_axis(self.maps, scale[None], axis=0)[0])

    def place(self, peak: int) -> tuple[int, int, int]:
        """Voxel of one of the peaks."""
        scale, dark = divmod(peak, 2)
        image = -self.maps[scale] if dark else self.maps[scale]
        i, j, k = (int(index) for index in np.unravel_index(image.argmax(), image.shape))
        return i, j, k


@dataclass(frozen=True)
class LesionMap:
    """Residual of a scan's coarse image, smoothed at each scale, over its robust standard deviation in training people.

    Attributes:
        support: voxels that count `[D, H, W]`.
        spacing_mm: spacing of the coarse image.
        mean: mean of the training people on the support `[V]`.
        components: principal components `[K, V]`.
        offset: median of the smoothed residuals of people left out, by scale `[S, V]`.
        spread: their robust standard deviation `[S, V]`.
    """

    support: Bools
    spacing_mm: float
    mean: Singles
    components: Singles
    offset: Singles
    spread: Singles

    @classmethod
    def fit(cls, images: Singles, masks: Bools, folds: Sequence[int], spacing_mm: float) -> tuple[Self, Doubles]:
        """Fit coarse images `[N, D, H, W]`; return the map and the peaks `[N, P]` of the people, left out by fold.

        A person's residual and reference come from the other folds.
        """
        support = ndimage.binary_erosion(masks.mean(axis=0) > COVERAGE)
        rows, parts = images[:, support], np.asarray(folds)
        residuals = np.empty((len(rows), len(SCALES_MM), rows.shape[1]), np.float32)
        for fold in np.unique(parts):
            components = principal_components(rows[parts != fold], COMPONENTS)
            for index in np.flatnonzero(parts == fold):
                residuals[index] = _smoothed(residual(rows[index], *components), support, spacing_mm)
        peaks: dict[int, Doubles] = {}
        for fold in np.unique(parts):
            reference = _reference(residuals[parts != fold], support, spacing_mm)
            for index in np.flatnonzero(parts == fold):
                peaks[int(index)] = _deviation(residuals[index], support, *reference).peaks
        mean, components_all = principal_components(rows, COMPONENTS)
        offset, spread = _reference(residuals, support, spacing_mm)
        arrays = (np.asarray(array, np.float32) for array in (mean, components_all, offset, spread))
        return cls(support, spacing_mm, *arrays), np.stack([peaks[index] for index in range(len(rows))])

    def deviation(self, image: Singles) -> Deviation:
        """Deviation of a new person's coarse image `[D, H, W]`."""
        rest = residual(image[self.support], self.mean, self.components)
        return _deviation(_smoothed(rest, self.support, self.spacing_mm), self.support, self.offset, self.spread)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the map, by attribute."""
        names = ("mean", "components", "offset", "spread")
        return {name: getattr(self, name) for name in names} | {"support": self.support.astype(np.float16)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], spacing_mm: float) -> Self:
        """The map with these arrays."""
        return cls(spacing_mm=spacing_mm, **{**arrays, "support": arrays["support"] > 0})


def _smoothed(rest: NDArray[Any], support: Bools, spacing_mm: float) -> Singles:
    """Residual on the support smoothed at each scale, `[S, V]`."""
    return np.stack([_blurred(rest, support, scale / spacing_mm) for scale in SCALES_MM])


def _reference(residuals: Singles, support: Bools, spacing_mm: float) -> tuple[Singles, Singles]:
    """Median and robust standard deviation of residuals `[N, S, V]`, each `[S, V]`.

    The variance is averaged over neighbours, because that of few people is noisy.
    """
    from scipy.stats import median_abs_deviation  # half a second to import

    offset = np.median(residuals, axis=0)
    variance = median_abs_deviation(residuals, axis=0, scale="normal") ** 2
    sigma = SPREAD_MM / spacing_mm
    weight = _blurred(np.ones(support.sum(), np.float32), support, sigma)
    spread = np.sqrt(np.stack([_blurred(row, support, sigma) for row in variance]) / weight)
    floor = SPREAD_FLOOR * np.median(spread, axis=1, keepdims=True)
    return offset, np.maximum(spread, np.maximum(floor, _TINY))


def _blurred(values: NDArray[Any], support: Bools, sigma: float) -> Singles:
    """Values `[V]` on the support, 0 elsewhere, smoothed by a Gaussian of `sigma` voxels."""
    image = np.zeros(support.shape, np.float32)
    image[support] = values
    return np.asarray(ndimage.gaussian_filter(image, sigma)[support])


def _deviation(smooth: Singles, support: Bools, offset: Singles, spread: Singles) -> Deviation:
    z = (smooth - offset) / spread
    z = z / np.sqrt(np.mean(np.minimum(np.abs(z), CLIP) ** 2, axis=1, keepdims=True) + _TINY)
    maps = np.zeros((len(z), *support.shape), np.float32)
    maps[:, support] = z
    return Deviation(maps, np.stack([z.max(axis=1), -z.min(axis=1)], axis=1).ravel().astype(np.float64))
