"""CoefficientPosterior: uncertainty of the coefficients of a local regression, as spatially smooth Gaussian draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dualflow.flows.voxel_features import along_axes, blur_matrix

LAG = 2
"""Distance in voxels at which the spatial correlation is matched."""
WIDTHS = (0.3, 4.0)
"""Bounds of the width of the smooth fields, in voxels."""


class CoefficientPosterior(nn.Module):
    """A Gaussian law of the error of the coefficients, beta_v - beta_v^ = s_v L e_v.

    e is a vector of P independent Gaussian fields of variance 1, with correlation exp(-d^2 / 4 t^2) over a distance d
    in voxels. L L^T is proportional to (A + ridge D)^-1, the covariance of a ridge regression's posterior with the
    average normal equations A; s_v is the residual spread of a voxel. The scale of L and the width t are matched to the
    grouped jackknife (Tukey 1958): the differences between the fits without one fold each.

    Args:
        shape: the grid, D, H, W.
        features: number of features P.
    """

    factor: Tensor
    spread: Tensor
    width: Tensor

    def __init__(self, shape: tuple[int, int, int], features: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("factor", torch.zeros(features, features))
        self.register_buffer("spread", torch.zeros(shape))
        self.register_buffer("width", torch.ones(()))

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw the error of the coefficients, `[P, D, H, W]`; random numbers come from the CPU."""
        noise = torch.randn(len(self.factor), *self.shape, generator=generator).to(self.factor.device)
        axes = [blur_matrix(size, float(self.width), noise.device) for size in self.shape]
        smooth = along_axes(noise, *(matrix / matrix.norm(dim=1, keepdim=True) for matrix in axes))
        return self.spread * (self.factor @ smooth.flatten(1)).view_as(smooth)

    def fit(self, precision: Tensor, spread: Tensor, features: Sequence[Tensor], folds: Tensor, mask: Tensor) -> None:
        """Set the law.

        Args:
            precision: A + ridge D, `[P, P]`.
            spread: residual standard deviation of each voxel, `[D, H, W]`.
            features: features of some scans inside the mask, each `[P, V]`.
            folds: coefficients of the fits without one fold each, `[K, P, V]`.
            mask: `[D, H, W]` bool, the V voxels.
        """
        self.spread.copy_(spread)
        self.factor.copy_(torch.linalg.inv(torch.linalg.cholesky(precision.double())).T)
        count, law, jackknife, products = len(folds), 0.0, 0.0, torch.zeros(2, dtype=torch.float64)
        departures = folds - folds.mean(dim=0)
        for scan in features:
            law += float(((self.factor.T @ scan) * spread[mask]).square().sum())
            images = torch.einsum("kpv,pv->kv", departures, scan)
            jackknife += float(images.square().sum()) * (count - 1) / count
            products += _lagged(images / spread[mask].clamp_min(1e-6), mask)
        self.factor.mul_((jackknife / max(law, 1e-12)) ** 0.5)
        correlation = float(products[0] / products[1].clamp_min(1e-12))
        correlation = min(max(correlation, 1e-6), 1 - 1e-6)
        width = LAG / 2 / (-torch.log(torch.tensor(correlation))).sqrt()
        self.width.copy_(width.clamp(*WIDTHS))


def _lagged(images: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of products of values `[K, V]` at distance LAG along each axis, and of their squares."""
    dense = images.new_zeros(len(images), *mask.shape)
    dense[:, mask] = images
    product = square = torch.zeros((), dtype=torch.float64)
    for axis in range(3):
        size = mask.shape[axis] - LAG
        near, far = (dense.narrow(axis + 1, start, size).double() for start in (0, LAG))
        both = mask.narrow(axis, 0, size) & mask.narrow(axis, LAG, size)
        product = product + (near * far)[:, both].sum()
        square = square + ((near**2 + far**2) / 2)[:, both].sum()
    return torch.stack([product, square])
