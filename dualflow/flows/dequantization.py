"""Noise that training adds to a target: a floor for densities of real values, dequantisation for integers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dualflow.flows.rng import standard_noise, uniform_noise
from dualflow.flows.spec import FlowSpec


def prepare_target(
    target: Tensor,
    mask: Tensor | None,
    spec: FlowSpec,
    generator: torch.Generator | None = None,
    *,
    training: bool = False,
) -> Tensor:
    """A target as the flow sees it: with its noise, and with the background that training shows.

    Real values get noise in training only; integers are dequantised always, for on the edges of their bins they have no
    density.
    """
    if training or spec.dequantisation == "uniform":
        target = DEQUANTIZATIONS[spec.dequantisation](target, spec, generator)
    return with_background(target, mask, spec, generator)


def gaussian(target: Tensor, spec: FlowSpec, generator: torch.Generator | None = None) -> Tensor:
    """A real-valued target with N(0, noise^2): what happens to be constant gets a density that is large, but finite."""
    return target + spec.noise * standard_noise(tuple(target.shape), target, generator)


def uniform(target: Tensor, spec: FlowSpec, generator: torch.Generator | None = None) -> Tensor:
    """A target of multiples of `bin_width`, spread evenly over its bins: the density then bounds the mass."""
    return target + spec.bin_width * uniform_noise(target, generator)


def with_background(
    target: Tensor, mask: Tensor | None, spec: FlowSpec, generator: torch.Generator | None = None
) -> Tensor:
    """The target inside the mask, and N(0, background_noise^2) outside of it, where an image has nothing to say.

    A background that is exactly constant has a density without bound: its gradients, larger by the ratio of the
    standard deviations, would be nearly all that a flow learns from. Drawn from a known law q(b), it is an auxiliary
    variable, and the density of the voxels x inside the mask is bounded by

        log p(x) = log int p(x, b) db >= E_q[log p(x, b) - log q(b)]

    Without a mask, or with `background_noise` 0, the target is returned as it is.
    """
    if mask is None or not spec.background_noise:
        return target
    return torch.where(mask, target, spec.background_noise * standard_noise(tuple(target.shape), target, generator))


DEQUANTIZATIONS: dict[str, Callable[[Tensor, FlowSpec, torch.Generator | None], Tensor]] = {
    "none": gaussian,
    "uniform": uniform,
}
