"""Maps of the mean error over people, on the model grid."""

from __future__ import annotations

import numpy as np

from dualflow.arrays import Bools, Floats

MIN_SHARE = 0.5
"""Share of the people whose mask must hold a voxel for the maps to have a value there."""
ROUNDING = 1e-9
"""Tolerance of that share: the weights of a person's scans add up to 1 only up to rounding."""


class MeanError:
    """Running sums of signed and absolute errors, so that memory does not grow with the number of people.

    Args:
        shape: shape of the model grid.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.people = 0.0
        self._weight = np.zeros(shape)
        self._signed, self._absolute = np.zeros(shape), np.zeros(shape)

    def add(self, estimate: Floats, target: Floats, mask: Bools, weight: float) -> None:
        """Include a scan: estimate and real target `[D, H, W]`, the brain mask, and 1 / scans of the person."""
        error = weight * np.where(mask, np.asarray(estimate, np.float64) - target, 0.0)
        self.people += weight
        self._weight += weight * mask
        self._signed += error
        self._absolute += np.abs(error)

    def maps(self) -> dict[str, Floats]:
        """`bias`, the mean of the signed, and `error`, of the absolute errors, `[D, H, W]`; 0 where few masks reach."""
        inside = (self._weight >= (MIN_SHARE - ROUNDING) * self.people) & (self._weight > 0)
        weight = np.where(inside, self._weight, 1.0)
        return {
            name: np.where(inside, total / weight, 0.0).astype(np.float32)
            for name, total in (("bias", self._signed), ("error", self._absolute))
        }
