"""Couplings and injectors: elementwise transforms with parameters predicted by a network.

Under autocast the data stays float32 and only the network is rounded. The network's input in the inverse may round
differently, so a bfloat16 round trip is accurate to a few percent and a float32 one to 1e-5. Decode in float32.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dualflow.errors import ShapeError
from dualflow.flows.bijection import Bijection, soft_bound, sum_per_sample, zero_log_det
from dualflow.flows.network import to_data_format


class ElementwiseTransform(Protocol):
    """An elementwise bijection with `parameters_per_channel` parameters per element, stacked along the channels."""

    parameters_per_channel: int

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed tensor and the log-determinant `[N]`."""

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; return the tensor and the negative log-determinant `[N]`."""


class Affine:
    """Elementwise shift, then scale.

        z = s (x + t),    log s = bound * tanh(raw / bound),    log|det| = sum log s

    The scale stays within `[exp(-bound), exp(bound)]`, so it can contract and expand and its reciprocal is bounded too.
    The normalisation before the network's last layer limits the shift.
    """

    parameters_per_channel = 2

    def __init__(self, log_scale_bound: float) -> None:
        self.log_scale_bound = log_scale_bound

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`z = s (x + t)`."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        return (x + shift) * log_scale.exp(), sum_per_sample(log_scale)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`x = z / s - t`."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        return z * (-log_scale).exp() - shift, -sum_per_sample(log_scale)

    def _shift_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.chunk(2, dim=1)
        return shift, soft_bound(raw, self.log_scale_bound)


class Additive:
    """Elementwise shift (Dinh et al. 2015): `z = x + t`, log|det| = 0."""

    parameters_per_channel = 1

    def __init__(self, log_scale_bound: float = 0.0) -> None:
        """Accept the bound for a common signature and ignore it, because there is no scale."""

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`z = x + t`."""
        return x + parameters, zero_log_det(x)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`x = z - t`."""
        return z - parameters, zero_log_det(z)


class Coupling(Bijection):
    """Coupling layer: one half of the channels parametrises the transform of the other half (Dinh et al. 2017).

        (x_a, x_b) -> (x_a, transform(x_b; network(x_a, context)))

    The Jacobian is triangular for any network from C/2 channels to `transform.parameters_per_channel * C/2`. With the
    source's features as context this is the conditional coupling of c-Glow and SRFlow; with the activations of the same
    step of a source flow it is that of C-Flow and Full-Glow.
    """

    def __init__(self, network: nn.Module, transform: ElementwiseTransform) -> None:
        super().__init__()
        self.network, self.transform = network, transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform the second half of the channels."""
        x_a, x_b = self._halves(x)
        z_b, log_det = self.transform.forward(x_b, to_data_format(self.network(x_a, context), x))
        return torch.cat([x_a, z_b], dim=1), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the transform, with parameters from the unchanged first half."""
        z_a, z_b = self._halves(z)
        x_b, log_det = self.transform.inverse(z_b, to_data_format(self.network(z_a, context), z))
        return torch.cat([z_a, x_b], dim=1), log_det

    def reconstruct(
        self, out: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Recover the input, evaluating the network once because it reads only the unchanged half."""
        x_a, out_b = (half.detach() for half in self._halves(out))
        parameters = to_data_format(self.network(x_a.requires_grad_(), context), out)
        x_b, out_b, log_det = _reconstruct(self.transform, out_b, parameters, inverse=inverse)
        return (x_a, x_b), torch.cat([x_a, out_b], dim=1), log_det

    @staticmethod
    def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] % 2:
            raise ShapeError(f"a coupling needs an even number of channels, got {x.shape[1]}; squeeze first")
        x_a, x_b = x.chunk(2, dim=1)
        return x_a, x_b


class Injector(Bijection):
    """Elementwise transform of all channels, with parameters from the source alone (Lugmayr et al. 2020, SRFlow).

        z = transform(x; network(u)),    affine: log|det| = sum over channels and voxels of log s(u)

    The parameters do not depend on x, so the Jacobian is diagonal. The source reaches every channel; in a coupling it
    reaches one half.
    """

    def __init__(self, network: nn.Module, transform: ElementwiseTransform) -> None:
        super().__init__()
        self.network, self.transform = network, transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform all channels."""
        return self.transform.forward(x, to_data_format(self.network(context), x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the transform with the same parameters."""
        return self.transform.inverse(z, to_data_format(self.network(context), z))

    def reconstruct(
        self, out: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Recover the input, evaluating the network once because it does not read the data."""
        parameters = to_data_format(self.network(context), out)
        x, out, log_det = _reconstruct(self.transform, out, parameters, inverse=inverse)
        return (x,), out, log_det


def _reconstruct(
    transform: ElementwiseTransform, out: Tensor, parameters: Tensor, *, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input of a transform with output `out` as a leaf; its transform; the log-determinant."""
    undo, apply = (transform.forward, transform.inverse) if inverse else (transform.inverse, transform.forward)
    with torch.no_grad():
        x = undo(out, parameters)[0]
    return x.requires_grad_(), *apply(x, parameters)


COUPLING_TRANSFORMS: dict[str, type[Affine] | type[Additive]] = {"affine": Affine, "additive": Additive}
