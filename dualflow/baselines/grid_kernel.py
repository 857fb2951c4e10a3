"""GridKernel: correlation of a random field on a voxel grid, a sum of squared-exponential kernels.

Each kernel is a product of one small matrix per axis, so the covariance of a whole volume is applied, and a field is
drawn, by products with those matrices.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from dualflow.flows.field_whitening import LENGTHS
from dualflow.flows.rng import standard_noise
from dualflow.flows.voxel_features import along_axes

LAGS = 8
"""Largest distance in voxels at which correlations are measured."""
SUM_WEIGHT = 1e3
"""Weight of the condition that the terms sum to 1, relative to the correlation at one distance."""


class GridKernel(nn.Module):
    """Stationary correlation `w_0 [h = 0] + sum_k w_k exp(-h^2 / 2 l_k^2)` at a distance of h voxels.

    The weights sum to 1, so every voxel has variance 1, at the edges of the grid too.

    Args:
        shape: the grid, D, H, W.
    """

    weights: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("weights", torch.tensor([1.0] + [0.0] * len(LENGTHS)))
        for index, length in enumerate(LENGTHS):
            for axis, size in enumerate(shape):
                matrix, root = _axis_correlation(size, length)
                self.register_buffer(f"matrix_{index}_{axis}", matrix, persistent=False)
                self.register_buffer(f"root_{index}_{axis}", root, persistent=False)

    def fit(self, fields: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit the weights to the correlations of fields, by non-negative least squares.

        Args:
            fields: pairs of a field `[D, H, W]` of variance 1 and its bool mask `[D, H, W]`.
        """
        from scipy.optimize import nnls

        products, counts = torch.zeros(LAGS + 1, dtype=torch.float64), torch.zeros(LAGS + 1, dtype=torch.float64)
        for field, mask in fields:
            values = torch.where(mask, field, 0.0)
            for axis in range(3):
                for lag in range(min(LAGS, values.shape[axis] - 1) + 1):
                    length = values.shape[axis] - lag
                    near, far = values.narrow(axis, 0, length), values.narrow(axis, lag, length)
                    products[lag] += (near * far).sum(dtype=torch.float64)
                    counts[lag] += (mask.narrow(axis, 0, length) & mask.narrow(axis, lag, length)).sum()
        measured = counts > 0
        correlation = (products / counts.clamp_min(1) / (products[0] / counts[0]))[measured].numpy()
        distance = torch.arange(LAGS + 1)[measured].numpy()
        terms = [distance == 0, *(np.exp(-0.5 * (distance / length) ** 2) for length in LENGTHS)]
        design = np.stack(terms, axis=1).astype(np.float64)
        weights, _ = nnls(np.vstack([design, np.full(len(terms), SUM_WEIGHT)]), np.append(correlation, SUM_WEIGHT))
        self.weights.copy_(torch.from_numpy(weights / weights.sum()))

    def apply(self, field: Tensor) -> Tensor:  # type: ignore[override]
        """Multiply fields `[..., D, H, W]` by the correlation matrix."""
        result = self.weights[0] * field
        for index in self._active():
            result = result + self.weights[index + 1] * along_axes(field, *self._matrices("matrix", index))
        return result

    def correlation(self, voxels: Tensor) -> Tensor:
        """Return the correlation matrix `[V, V]` of voxels with indices `[V, 3]`."""
        # Two factors per pair of voxels instead of three: one of their slices, and one of their places within it.
        slices, places = voxels[:, 0], voxels[:, 1] * self.shape[2] + voxels[:, 2]
        matrix = self.weights.new_zeros(len(voxels), len(voxels))
        for index in self._active():
            along, *within = self._matrices("matrix", index)
            term = torch.kron(*within)[places][:, places]
            matrix += term.mul_((self.weights[index + 1] * along)[slices][:, slices])
        matrix.diagonal().add_(self.weights[0])
        return matrix

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw independent fields `[count, D, H, W]` of mean 0 and variance 1."""
        size = (count, *self.shape)
        field = self.weights[0].sqrt() * standard_noise(size, self.weights, generator)
        for index in self._active():
            noise = standard_noise(size, self.weights, generator)
            field = field + self.weights[index + 1].sqrt() * along_axes(noise, *self._matrices("root", index))
        return field

    def _active(self) -> list[int]:
        return [index for index in range(len(LENGTHS)) if self.weights[index + 1] > 0]

    def _matrices(self, name: str, index: int) -> list[Tensor]:
        return [getattr(self, f"{name}_{index}_{axis}") for axis in range(3)]


def _axis_correlation(size: int, length: float) -> tuple[Tensor, Tensor]:
    """Return the correlation matrix `[size, size]` of one axis and its symmetric square root."""
    position = np.arange(size, dtype=np.float64)
    matrix = np.exp(-0.5 * ((position[:, None] - position[None, :]) / length) ** 2)
    values, vectors = np.linalg.eigh(matrix)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return torch.from_numpy(matrix).float(), torch.from_numpy(root).float()
