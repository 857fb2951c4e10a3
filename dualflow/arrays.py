"""Types of numpy arrays, by what they hold."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
"""Floating-point numbers of any precision."""
Singles: TypeAlias = NDArray[np.float32]
"""Numbers of single precision, such as voxels."""
Doubles: TypeAlias = NDArray[np.float64]
"""Numbers of double precision, such as statistics."""
Bools: TypeAlias = NDArray[np.bool_]
"""Truth values, such as masks."""
