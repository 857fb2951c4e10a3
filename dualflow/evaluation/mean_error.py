"""Maps of the mean error over people, on the model grid."""

from __future__ import annotations

import numpy as np

from dualflow.evaluation.prediction import Bools, Floats

MIN_SHARE = 0.5
"""Share of the people whose mask must hold a voxel for the maps to have a value there."""


class MeanError:
    """Running sums of signed and absolute errors, so that memory does not grow with the number of people.

    Args:
        shape: shape of the model grid.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.people = 0
        self._count = np.zeros(shape, np.int64)
        self._signed, self._absolute = np.zeros(shape), np.zeros(shape)

    def add(self, estimate: Floats, target: Floats, mask: Bools) -> None:
        """Include a person: estimate and real target `[D, H, W]`, and the brain mask."""
        error = np.where(mask, np.asarray(estimate, np.float64) - target, 0.0)
        self.people += 1
        self._count += mask
        self._signed += error
        self._absolute += np.abs(error)

    def maps(self) -> dict[str, Floats]:
        """`bias`, the mean of the signed, and `error`, of the absolute errors, `[D, H, W]`; 0 where few masks reach."""
        inside = (self._count >= MIN_SHARE * self.people) & (self._count > 0)
        count = np.where(inside, self._count, 1)
        return {
            name: np.where(inside, total / count, 0.0).astype(np.float32)
            for name, total in (("bias", self._signed), ("error", self._absolute))
        }
