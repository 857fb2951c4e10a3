"""Couplings and injectors: an elementwise transform whose parameters a network reads elsewhere.

Under autocast the data stays float32 and only the network is rounded; its input in the inverse may round the other way,
so a bfloat16 round trip is good to percents only, a float32 one to 1e-5. Train in either, decode in float32.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dualflow.errors import ShapeError
from dualflow.flows.bijection import Bijection, soft_bound, sum_per_sample, zero_log_det
from dualflow.flows.network import to_data_format


class ElementwiseTransform(Protocol):
    """An elementwise bijection with `parameters_per_channel` numbers per element, given along the channel axis."""

    parameters_per_channel: int

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed elements and the log-determinant `[N]`."""

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; return the elements and the negative log-determinant."""


class Affine:
    """Shift, then scale.

        z = s (x + t),    log s = bound * tanh(raw / bound),    log|det| = sum log s

    The bound holds the scale within `[exp(-bound), exp(bound)]`: it can contract and expand, and its reciprocal is as
    harmless as itself. The shift is limited by the normalisation in front of the network's last layer.
    """

    parameters_per_channel = 2

    def __init__(self, log_scale_bound: float) -> None:
        self.log_scale_bound = log_scale_bound

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`z = s (x + t)`."""
        shift, log_scale = self._read(parameters)
        return (x + shift) * log_scale.exp(), sum_per_sample(log_scale)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`x = z / s - t`."""
        shift, log_scale = self._read(parameters)
        return z * (-log_scale).exp() - shift, -sum_per_sample(log_scale)

    def _read(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.chunk(2, dim=1)
        return shift, soft_bound(raw, self.log_scale_bound)


class Additive:
    """Shift only (Dinh et al. 2015): `z = x + t`, log|det| = 0."""

    parameters_per_channel = 1

    def __init__(self, log_scale_bound: float = 0.0) -> None:
        """Take the bound that every transform is offered; there is no scale to bound."""

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`z = x + t`."""
        return x + parameters, zero_log_det(x)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`x = z - t`."""
        return z - parameters, zero_log_det(z)


class Coupling(Bijection):
    """Half of the channels is transformed by what a network reads from the other half (Dinh et al. 2017).

        (x_a, x_b) -> (x_a, transform(x_b; network(x_a, context)))

    Triangular, so any network is allowed: from C/2 channels it makes `transform.parameters_per_channel * C/2`. With the
    source's features as context it is the conditional coupling of c-Glow and SRFlow; with the activations of the same
    step of the source's own flow, that of C-Flow and Full-Glow.
    """

    def __init__(self, network: nn.Module, transform: ElementwiseTransform) -> None:
        super().__init__()
        self.network, self.transform = network, transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ElementwiseTransform the second half."""
        x_a, x_b = self._halves(x)
        z_b, log_det = self.transform.forward(x_b, to_data_format(self.network(x_a, context), x))
        return torch.cat([x_a, z_b], dim=1), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the transform; the first half, from which its parameters come, is unchanged."""
        z_a, z_b = self._halves(z)
        x_b, log_det = self.transform.inverse(z_b, to_data_format(self.network(z_a, context), z))
        return torch.cat([z_a, x_b], dim=1), log_det

    def reconstruct(
        self, out: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """As any bijection's, but the network, which reads the half that does not change, is run once for both."""
        a, b = (half.detach() for half in self._halves(out))
        parameters = to_data_format(self.network(a.requires_grad_(), context), out)
        b, again, log_det = _retraced(self.transform, b, parameters, inverse=inverse)
        return (a, b), torch.cat([a, again], dim=1), log_det

    @staticmethod
    def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] % 2:
            raise ShapeError(f"a coupling needs an even number of channels, got {x.shape[1]}; squeeze first")
        x_a, x_b = x.chunk(2, dim=1)
        return x_a, x_b


class Injector(Bijection):
    """All channels and voxels transformed by the source alone (Lugmayr et al. 2020, SRFlow).

        z = transform(x; network(u)),    affine: log|det| = sum over channels and voxels of log s(u)

    The parameters do not depend on x, so the Jacobian is diagonal; the source speaks to every channel directly, where a
    coupling lets it reach one half only.
    """

    def __init__(self, network: nn.Module, transform: ElementwiseTransform) -> None:
        super().__init__()
        self.network, self.transform = network, transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ElementwiseTransform everything."""
        return self.transform.forward(x, to_data_format(self.network(context), x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo it with the same parameters."""
        return self.transform.inverse(z, to_data_format(self.network(context), z))

    def reconstruct(
        self, out: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """As any bijection's, but the network is run once for both."""
        x, again, log_det = _retraced(self.transform, out, to_data_format(self.network(context), out), inverse=inverse)
        return (x,), again, log_det


def _retraced(
    transform: ElementwiseTransform, out: Tensor, parameters: Tensor, *, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The elements that a transform made `out` of, as a leaf; the transform of them; its log-determinant."""
    undo, apply = (transform.forward, transform.inverse) if inverse else (transform.inverse, transform.forward)
    with torch.no_grad():
        x = undo(out, parameters)[0]
    return x.requires_grad_(), *apply(x, parameters)


COUPLING_TRANSFORMS: dict[str, type[Affine] | type[Additive]] = {"affine": Affine, "additive": Additive}
