"""Couplings: half of the channels is transformed by parameters that a network reads from the other half.

Under autocast the data stays float32 and only the network is rounded; its input in the inverse may round the other way,
so a bfloat16 round trip is good to bfloat16's step (1e-3), a float32 one to 1e-6. Train in either, decode in float32.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from dualflow.errors import ShapeError
from dualflow.flows.bijection import Bijection, soft_bound, sum_per_sample, zero_log_det


class Coupling(Bijection):
    """`(x_a, x_b) -> (x_a, g(x_b; network(x_a, context)))`: triangular, so any network is allowed (Dinh et al. 2017).

    The network is injected: from C/2 channels it makes `parameters_per_channel * C/2`.
    """

    parameters_per_channel: int

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform the second half."""
        x_a, x_b = self._halves(x)
        z_b, log_det = self.transform(x_b, self.network(x_a, context).to(x.dtype))
        return torch.cat([x_a, z_b], dim=1), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the transform; the first half, from which its parameters come, is unchanged."""
        z_a, z_b = self._halves(z)
        x_b, log_det = self.restore(z_b, self.network(z_a, context).to(z.dtype))
        return torch.cat([z_a, x_b], dim=1), log_det

    @abstractmethod
    def transform(self, x_b: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map the second half forward; return it and the log-determinant."""

    @abstractmethod
    def restore(self, z_b: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `transform`; return the second half and the negative log-determinant."""

    @staticmethod
    def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] % 2:
            raise ShapeError(f"a coupling needs an even number of channels, got {x.shape[1]}; squeeze first")
        x_a, x_b = x.chunk(2, dim=1)
        return x_a, x_b


class AffineCoupling(Coupling):
    """Scale and shift.

        z_b = s (x_b + t),    log s = bound * tanh(raw / bound),    log|det| = sum log s

    The bound holds the scale within `[exp(-bound), exp(bound)]`: it can contract and expand, and its reciprocal is as
    harmless as itself. The shift is limited by the normalisation in front of the network's last layer.
    """

    parameters_per_channel = 2

    def __init__(self, network: nn.Module, log_scale_bound: float) -> None:
        super().__init__(network)
        self.log_scale_bound = log_scale_bound

    def transform(self, x_b: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`z_b = s (x_b + t)`."""
        shift, log_scale = self._read(parameters)
        return (x_b + shift) * log_scale.exp(), sum_per_sample(log_scale)

    def restore(self, z_b: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`x_b = z_b / s - t`."""
        shift, log_scale = self._read(parameters)
        return z_b * (-log_scale).exp() - shift, -sum_per_sample(log_scale)

    def _read(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.chunk(2, dim=1)
        return shift, soft_bound(raw, self.log_scale_bound)


class AdditiveCoupling(Coupling):
    """Shift only (Dinh et al. 2015): `z_b = x_b + t`, log|det| = 0."""

    parameters_per_channel = 1

    def __init__(self, network: nn.Module, log_scale_bound: float = 0.0) -> None:
        """Take the bound that all couplings are offered; there is no scale to bound."""
        super().__init__(network)

    def transform(self, x_b: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`z_b = x_b + t`."""
        return x_b + parameters, zero_log_det(x_b)

    def restore(self, z_b: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`x_b = z_b - t`."""
        return z_b - parameters, zero_log_det(z_b)


COUPLINGS: dict[str, type[AffineCoupling] | type[AdditiveCoupling]] = {
    "affine": AffineCoupling,
    "additive": AdditiveCoupling,
}
