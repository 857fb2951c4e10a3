"""Transforms of sampled latents, which change the samples but not the density.

The input `e[N, C, d, h, w]` is white noise of one level with standard deviation `temperature`. Normalisation gives sets
of latents the moments of white noise of that temperature (Lugmayr et al. 2020, SRFlow). Interpolation averages
neighbouring latents, weighted by the similarity of their source features (Mao et al. 2022, PU-Flow).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from dualflow.errors import ShapeError
from dualflow.flows.bijection import upcast
from dualflow.flows.rng import standard_noise

LatentTransform = Callable[[Tensor, Tensor | None, float, torch.Generator | None], Tensor]

# Axes of `[N, C, d, h, w]` that a set of latents covers.
SAMPLE_AXES, VOXEL_AXES, CHANNEL_AXES = (1, 2, 3, 4), (1,), (2, 3, 4)
SHARPNESS = 8.0
"""Inverse temperature of the weights: a neighbour with orthogonal features weighs exp(-8) = 1/3000 of the voxel."""


def identity(e: Tensor, features: Tensor | None, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Return the latents unchanged."""
    return e


def normalise(
    e: Tensor,
    features: Tensor | None,
    temperature: float,
    generator: torch.Generator | None,
    *,
    axes: tuple[int, ...],
) -> Tensor:
    """Give every set of latents the mean and standard deviation of a new draw (SRFlow's latent normalisation).

        e^ = s^ / s~ (e - m~) + m^,    m^ ~ N(0, tau / n),    s^^2 ~ Gamma((n - 1) / 2, scale 2 tau / (n - 1))

    Here m~, s~ are the moments of the set, n its size and tau = temperature^2. The new moments are those of n
    independent normal numbers of variance tau, which have these distributions, so white latents stay white. A set of
    equal latents, as at temperature 0, becomes its new mean.
    """
    mean, deviation = _moments(e, axes)
    new_mean, new_deviation = _moments(temperature * standard_noise(tuple(e.shape), e, generator), axes)
    return (e - mean) * (new_deviation / deviation) + new_mean


def interpolate_noise(
    e: Tensor, features: Tensor | None, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Interpolate latents along the source's structures, and rescale them to unit variance.

    The weighted sum of independent latents of variance tau has variance `tau sum_k w_vk^2`. Neighbouring latents become
    correlated, so the samples are no longer those of the flow's density.
    """
    assert features is not None
    weights = neighbour_weights(features, SHARPNESS)
    return interpolate(e, weights) * weights.square().sum(1, keepdim=True).rsqrt().to(e.dtype)


def neighbour_weights(features: Tensor, sharpness: float) -> Tensor:
    """Return weights `[N, 27, D, H, W]` of each voxel's neighbours, from the similarity of `features[N, F, D, H, W]`.

        w_vk = softmax_k(sharpness * cos(u_v, u_n(k)))

    Neighbours outside the grid have weight 0, and the weights of every voxel sum to 1. A larger sharpness gives the
    voxel itself more weight.
    """
    unit = F.normalize(upcast(features), dim=1)
    similarity = torch.stack([(unit * neighbour).sum(1) for neighbour in _neighbours(unit)], dim=1)
    inside = torch.cat(list(_neighbours(unit.new_ones(1, 1, *unit.shape[2:]))), dim=1)
    return torch.softmax((sharpness * similarity).masked_fill(inside == 0, -torch.inf), dim=1)


def interpolate(e: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over the 27 neighbours, `e~_v = sum_k w_vk e_n(k)` (PU-Flow, on a grid).

    Latents on a grid coarser by an integer factor are first repeated onto the weights' grid; the result
    `[N, C, D, H, W]` is on that grid.

    Raises:
        ShapeError: the grids do not differ by an integer factor.
    """
    for axis, factor in enumerate(_factors(e, weights), start=2):
        e = e.repeat_interleave(factor, dim=axis)
    out = torch.zeros_like(e)
    for k, neighbour in enumerate(_neighbours(e)):
        out = out + weights[:, k : k + 1].to(e.dtype) * neighbour
    return out


def _moments(e: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation over the axes, with those axes kept as 1.

    The deviation of equal numbers is tiny, not 0, so that it is a valid divisor with a finite gradient.
    """
    mean = e.mean(axes, keepdim=True)
    freedom = max(e[:1].numel() // mean[:1].numel() - 1, 1)
    variance = (e - mean).square().sum(axes, keepdim=True) / freedom
    return mean, variance.clamp_min(torch.finfo(e.dtype).tiny).sqrt()


def _neighbours(x: Tensor) -> Iterator[Tensor]:
    """Yield the 27 shifted copies of `x[N, C, D, H, W]`, zero beyond the edge; the 14th is x itself."""
    d, h, w = x.shape[2:]
    padded = F.pad(x, (1,) * 6)
    for i, j, k in product(range(3), repeat=3):
        yield padded[:, :, i : i + d, j : j + h, k : k + w]


def _factors(e: Tensor, weights: Tensor) -> tuple[int, ...]:
    """Return the integer ratio of the two grids along each axis."""
    coarse, fine = tuple(e.shape[2:]), tuple(weights.shape[2:])
    if any(large % small for large, small in zip(fine, coarse, strict=True)):
        raise ShapeError(
            f"latents on grid {coarse} cannot be repeated onto features on grid {fine}; "
            "resample the features to an integer multiple of the latents' grid"
        )
    return tuple(large // small for large, small in zip(fine, coarse, strict=True))


LATENT_TRANSFORMS: dict[str, LatentTransform] = {
    "none": identity,
    "global": partial(normalise, axes=SAMPLE_AXES),
    "local": partial(normalise, axes=VOXEL_AXES),
    "spatial": partial(normalise, axes=CHANNEL_AXES),
    "interpolate": interpolate_noise,
}
