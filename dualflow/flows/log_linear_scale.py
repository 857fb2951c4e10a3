"""LogLinearScale: the size of errors as a log-linear function of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LogLinearScale(nn.Module):
    """Scale `s(x) = exp((b + w . (x - c)) / 2)` of errors, 1 before a fit.

    An unknown feature counts as c, its mean in the fit. The exponent is clamped to its range in the fit, so that the
    scale does not extrapolate. `baselines.scale_fit` has the fit.

    Args:
        features: number P of features.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor
    limits: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("weight", torch.zeros(features))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("limits", torch.zeros(2))

    def forward(self, features: Tensor) -> Tensor:
        """Return the scale `[...]` of features `[..., P]`."""
        exponent = self.bias + torch.nan_to_num(features - self.centre) @ self.weight
        return (0.5 * exponent.clamp(self.limits[0], self.limits[1])).exp()
