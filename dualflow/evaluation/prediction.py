"""Interface of predictions for evaluation; any object with these attributes can be scored."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Bools: TypeAlias = NDArray[np.bool_]


class Predictive(Protocol):
    """A predicted volume and its spread, in the target's normalised unit (SUVR for PET).

    Attributes:
        mean: point estimate `[D, H, W]`.
        std: standard deviation per voxel `[D, H, W]`; zero everywhere for a model without uncertainty.
        samples: joint samples `[K, D, H, W]`, or None.
        region_std: standard deviation of each region mean `[R]`, or None if unknown.
    """

    @property
    def mean(self) -> Floats:
        """Point estimate `[D, H, W]`."""

    @property
    def std(self) -> Floats:
        """Standard deviation per voxel `[D, H, W]`."""

    @property
    def samples(self) -> Floats | None:
        """Joint samples `[K, D, H, W]`."""

    @property
    def region_std(self) -> Floats | None:
        """Standard deviation of the region means `[R]`."""
