"""Noise added to a target: Gaussian noise for real values, uniform dequantisation for integers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dualflow.errors import DataError
from dualflow.flows.rng import standard_noise, uniform_noise
from dualflow.flows.spec import FlowSpec

BIN_TOLERANCE = 1e-3
"""Largest distance of a value from a multiple of `bin_width`, in bins: float32 rounds large ones."""


def prepare_target(
    target: Tensor,
    mask: Tensor | None,
    spec: FlowSpec,
    generator: torch.Generator | None = None,
    *,
    training: bool = False,
) -> Tensor:
    """Add dequantisation noise to a target, and fill its background with noise.

    Real values get noise in training only. Integers are always dequantised, because discrete values have no density.

    Args:
        target: `[N, C, D, H, W]`, in its unit.
        mask: bool, `[N, C, D, H, W]`; None keeps the background.
        spec: the flow's choices of dequantisation and noise.
        generator: source of the noise; None takes torch's global one.
        training: whether real values get noise.
    """
    if training or spec.dequantisation == "uniform":
        target = DEQUANTIZATIONS[spec.dequantisation](target, spec, generator)
    return with_background(target, mask, spec, generator)


def gaussian(target: Tensor, spec: FlowSpec, generator: torch.Generator | None = None) -> Tensor:
    """Add N(0, noise^2), so a constant region of a real-valued target has a finite density."""
    return target + spec.noise * standard_noise(tuple(target.shape), target, generator)


def uniform(target: Tensor, spec: FlowSpec, generator: torch.Generator | None = None) -> Tensor:
    """Spread multiples of `bin_width` evenly over their bins, so that the density bounds the probability mass."""
    return target + spec.bin_width * uniform_noise(target, generator)


def require_bins(target: Tensor, spec: FlowSpec) -> None:
    """Check that the values of a target that is dequantised are multiples of `bin_width`.

    Raises:
        DataError: one is not, so that it would be drawn back to another value.
    """
    if spec.dequantisation != "uniform":
        return
    bins = target.double() / spec.bin_width
    off = (bins - bins.round()).abs() > BIN_TOLERANCE
    if off.any():
        raise DataError(
            f"a target has the value {target[off][0]:g}, expected multiples of bin_width = {spec.bin_width:g}; choose "
            "dequantisation: none, which is for real values, or another bin_width"
        )


def with_background(
    target: Tensor, mask: Tensor | None, spec: FlowSpec, generator: torch.Generator | None = None
) -> Tensor:
    """Replace the target outside the mask by N(0, background_noise^2).

    A constant background has an unbounded density, and its gradients would dominate training. Drawn from a known
    distribution q(b), the background is an auxiliary variable, and the density of the voxels x inside the mask has the
    lower bound

        log p(x) = log int p(x, b) db >= E_q[log p(x, b) - log q(b)]

    Without a mask, or with `background_noise` 0, the target is returned unchanged.
    """
    if mask is None or not spec.background_noise:
        return target
    return torch.where(mask, target, spec.background_noise * standard_noise(tuple(target.shape), target, generator))


DEQUANTIZATIONS: dict[str, Callable[[Tensor, FlowSpec, torch.Generator | None], Tensor]] = {
    "none": gaussian,
    "uniform": uniform,
}
