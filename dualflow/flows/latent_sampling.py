"""Tools on white latents of one level, before the base colours them: sampling, not likelihood.

`e[N, C, d, h, w]` is noise of deviation `temperature`. Normalisation gives sets of latents the
moments that white noise of that temperature would have (Lugmayr et al. 2020, SRFlow); interpolation weighs neighbours
by how alike the source looks there (Mao et al. 2022, PU-Flow).
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

# The axes of `[N, C, d, h, w]` over which a set of latents extends.
ALL_ENTRIES, ONE_VOXEL, ONE_CHANNEL = (1, 2, 3, 4), (1,), (2, 3, 4)
# A neighbour whose features are orthogonal to the voxel's own weighs exp(-8) = 1/3000 of it.
SHARPNESS = 8.0


def keep(e: Tensor, features: Tensor | None, temperature: float, generator: torch.Generator | None) -> Tensor:
    """The latents as they were drawn."""
    return e


def normalise(
    e: Tensor,
    features: Tensor | None,
    temperature: float,
    generator: torch.Generator | None,
    *,
    axes: tuple[int, ...],
) -> Tensor:
    """Give every set of latents the mean and deviation of a fresh draw (SRFlow's latent space normalisation).

        e^ = s^ / s~ (e - m~) + m^,    m^ ~ N(0, tau / n),    s^^2 ~ Gamma((n - 1) / 2, scale 2 tau / (n - 1))

    Here m~, s~ are the set's own moments, n its size and tau = temperature^2. The moments of n independent normal
    numbers of variance tau have just these distributions and are independent, so they are taken from such numbers.
    White latents therefore stay white. A set of equal latents, as at temperature 0, becomes its new mean.
    """
    mean, deviation = _moments(e, axes)
    new_mean, new_deviation = _moments(temperature * standard_noise(tuple(e.shape), e, generator), axes)
    return (e - mean) * (new_deviation / deviation) + new_mean


def interpolate_noise(
    e: Tensor, features: Tensor | None, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Interpolated latents that keep the variance of independent ones: noise that follows the source's structures.

    The weighted sum of independent latents of variance tau has variance `tau sum_k w_vk^2`. A flow whose latents are
    drawn so no longer samples its own density: neighbours rise and fall together.
    """
    assert features is not None
    weights = neighbour_weights(features, SHARPNESS)
    return interpolate(e, weights) * weights.square().sum(1, keepdim=True).rsqrt().to(e.dtype)


def neighbour_weights(features: Tensor, sharpness: float) -> Tensor:
    """Weights `[N, 27, D, H, W]` of the voxels around each voxel, from the alikeness of `features[N, F, D, H, W]`.

        w_vk = softmax_k(sharpness * cos(u_v, u_n(k)))

    Neighbours outside the grid get none, so that the weights of every voxel sum to 1. The larger the sharpness, the
    more a voxel keeps to itself.
    """
    unit = F.normalize(upcast(features), dim=1)
    alike = torch.stack([(unit * neighbour).sum(1) for neighbour in _neighbours(unit)], dim=1)
    inside = torch.cat(list(_neighbours(unit.new_ones(1, 1, *unit.shape[2:]))), dim=1)
    return torch.softmax((sharpness * alike).masked_fill(inside == 0, -torch.inf), dim=1)


def interpolate(e: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over the 27 neighbours, `e~_v = sum_k w_vk e_n(k)` (PU-Flow, on a grid).

    Latents on a grid that is coarser than the weights' by an integer factor are first repeated for the voxels they
    cover, so the result `[N, C, D, H, W]` is on the weights' grid.

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
    """Mean and unbiased deviation over the axes, which stay as 1.

    Of equal numbers the deviation is not 0 but tiny: it can be divided by, and has a gradient.
    """
    mean = e.mean(axes, keepdim=True)
    freedom = max(e[:1].numel() // mean[:1].numel() - 1, 1)
    variance = (e - mean).square().sum(axes, keepdim=True) / freedom
    return mean, variance.clamp_min(torch.finfo(e.dtype).tiny).sqrt()


def _neighbours(x: Tensor) -> Iterator[Tensor]:
    """The 27 shifted copies of `x[N, C, D, H, W]`, zero where they reach over the edge; the 14th is x itself."""
    d, h, w = x.shape[2:]
    padded = F.pad(x, (1,) * 6)
    for i, j, k in product(range(3), repeat=3):
        yield padded[:, :, i : i + d, j : j + h, k : k + w]


def _factors(e: Tensor, weights: Tensor) -> tuple[int, ...]:
    coarse, fine = tuple(e.shape[2:]), tuple(weights.shape[2:])
    if any(large % small for large, small in zip(fine, coarse, strict=True)):
        raise ShapeError(
            f"latents on grid {coarse} cannot be repeated onto features on grid {fine}; "
            "resample the features to an integer multiple of the latents' grid"
        )
    return tuple(large // small for large, small in zip(fine, coarse, strict=True))


LATENT_TRANSFORMS: dict[str, LatentTransform] = {
    "none": keep,
    "global": partial(normalise, axes=ALL_ENTRIES),
    "local": partial(normalise, axes=ONE_VOXEL),
    "spatial": partial(normalise, axes=ONE_CHANNEL),
    "interpolate": interpolate_noise,
}
