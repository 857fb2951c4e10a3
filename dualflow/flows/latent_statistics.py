"""Standardised latents of a target, and the transfer of their statistics (Lugmayr et al. 2020, SRFlow).

The standardised latents `e_l = (z_l - mean_l) / sigma_l` are what a target does not share with the expectation under
its condition. Decoded under another condition, they give the same deviations from another expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.flows.condition import Condition
from dualflow.flows.model import DualFlow
from dualflow.flows.multiscale import Encoding

SETS = {"global": (1, 2, 3, 4), "local": (1,), "spatial": (2, 3, 4)}
"""Axes of `[N, C, d, h, w]` that a set of latents covers: all, the channels of a voxel, or the voxels of a channel."""


def standardise(flow: DualFlow, code: Encoding, condition: Condition) -> list[Tensor]:
    """Return the standardised latents of an encoded target, finest first; gradients pass."""
    return [e for e, _ in flow.standardise_with_scales(code, condition)]


def match_moments(e: Tensor, reference: Tensor, sets: str) -> Tensor:
    """Give every set of latents the mean and standard deviation of the same set of a reference.

        e^ = s_ref / s (e - m) + m_ref

    With white noise of variance tau as reference this is SRFlow's latent normalisation: the new moments of a set of n
    follow `m ~ N(0, tau / n)` and `s^2 ~ Gamma((n - 1) / 2, scale 2 tau / (n - 1))`. A set of equal latents becomes its
    new mean.

    Args:
        e: latents of one level, `[N, C, d, h, w]`.
        reference: latents of the same size.
        sets: a row of SETS.
    """
    mean, deviation = _moments(e, SETS[sets])
    new_mean, new_deviation = _moments(reference, SETS[sets])
    return (e - mean) * (new_deviation / deviation) + new_mean


def _moments(e: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation over the axes, with those axes kept as 1.

    The deviation of equal numbers is tiny, not 0, so that it is a valid divisor.
    """
    mean = e.mean(axes, keepdim=True)
    mean = mean + (e - mean).mean(axes, keepdim=True)  # the mean of equal numbers without its rounding error
    freedom = max(e[:1].numel() // mean[:1].numel() - 1, 1)
    variance = (e - mean).square().sum(axes, keepdim=True) / freedom
    return mean, variance.clamp_min(torch.finfo(e.dtype).tiny).sqrt()
