"""Closed-form refit of a trained flow's spread map: samples of a voxel vary as much as its residuals do.

The couplings of a trained flow change the variance of each voxel, by different factors in different places. The
likelihood of the image hardly feels this in a single voxel, but an interval of that voxel does. The map is multiplied
by the square root of the smoothed squared residuals over the smoothed variances of samples. Few residuals tell little
of a single place, and many samples tell much: the variances are smoothed by NARROW voxels, and the squared residuals by
the width with the largest likelihood of those of held-out folds. Another choice is no change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualflow.data.dataset import PairDataset
from dualflow.flows.model import DualFlow
from dualflow.flows.regression_scans import shown
from dualflow.flows.spread_map import VoxelSpread
from dualflow.flows.voxel_features import blur
from dualflow.training.calibrate import fixed_samples
from dualflow.training.fit_base import conditioned_batches

WIDTHS = (0.7, 1.0, 1.5, 2.5, 4.0, 8.0)
"""Standard deviations of the smoothing of squared residuals that are compared, voxels."""
NARROW = 0.7
"""Standard deviation of the smoothing of variances, voxels. Less smoothing lowers the likelihood of images."""
SAMPLED = 32
"""Maximum number of scans from which samples are drawn; their average variance needs no more."""
BOUNDS = 0.5, 2.0
"""Smallest and largest factor of the map, relative to one factor for all voxels."""
MIN_RATIO = 1e-6
"""Smallest such factor, squared; residuals may all be 0."""
MIN_WEIGHT = 0.5
"""Smallest smoothed number of masks of a voxel with a factor of its own."""


class VoxelSums(NamedTuple):
    """Sums over scans, in squared units of the spread map.

    Attributes:
        squares: squared residuals of the scans of F folds, `[F, D, H, W]`.
        counts: masks of the same scans, `[F, D, H, W]`.
        variances: variances of samples, `[D, H, W]`, of up to SAMPLED scans.
        sampled: masks of those scans, `[D, H, W]`.
    """

    squares: Tensor
    counts: Tensor
    variances: Tensor
    sampled: Tensor


@torch.no_grad()
def refit_spread(flow: DualFlow, pairs: PairDataset, folds: Sequence[int]) -> tuple[PairDataset, dict[str, float]]:
    """Refit the spread map of a trained flow in place.

    Args:
        flow: a trained flow.
        pairs: training pairs, with cross-fitted means and spreads if mean and spread have them.
        folds: cross-fitting fold of each pair.

    Returns:
        The pairs, with spreads that follow the map, and facts of the fit: the `width` of the smoothing in voxels (0: no
        change) and the standard deviation `log_sd` of the logarithm of the map's factor. Pairs as they are and no facts
        for a flow without a spread map.
    """
    if not isinstance(flow.spread, VoxelSpread):
        return pairs, {}
    flow.eval()
    sums = voxel_sums(flow, pairs, folds)
    width = min((0.0, *WIDTHS), key=lambda width: held_out_nats(sums, width))
    number = sums.counts.sum(0)
    inside = number > 0
    log_variance = variance_ratio(sums.squares.sum(0), number, sums, width).log()
    # The level is left to calibration, which knows held-out people.
    factor = (0.5 * (log_variance - log_variance[inside].mean())).exp()
    factor = torch.where(inside, factor, 1.0)
    flow.spread.rescale(factor.to(flow.spread.image))
    return pairs.with_scaled_spreads(factor), {"width": width, "log_sd": float(factor[inside].log().std())}


@torch.no_grad()
def voxel_sums(flow: DualFlow, pairs: PairDataset, folds: Sequence[int]) -> VoxelSums:
    """Return the sums of squared residuals around the mean image, and of variances of samples."""
    squares, counts = (torch.zeros(max(folds) + 1, *flow.shape) for _ in range(2))
    variances, sampled = (torch.zeros(flow.shape) for _ in range(2))
    stride = -(-len(pairs) // SAMPLED)
    for index, (target, condition) in enumerate(conditioned_batches(flow, pairs, 1)):
        inside, scale = condition.inside[0, 0], condition.scale[0, 0]
        seen = inside & shown(pairs[index])[0].to(inside.device)
        residual = (target - condition.mean)[0, 0] / scale
        squares[folds[index]] += (residual.square() * seen).cpu()
        counts[folds[index]] += seen.cpu()
        if index % stride == 0:
            samples = fixed_samples(flow, condition, seed=index)
            variances += (samples.var(0) / scale.square() * inside).cpu()
            sampled += inside.cpu()
    return VoxelSums(squares, counts, variances, sampled)


def variance_ratio(squares: Tensor, counts: Tensor, sums: VoxelSums, width: float) -> Tensor:
    """Return the squared residuals over the variances of samples, `[D, H, W]`.

    The former are smoothed by `width` voxels, the latter by NARROW; at width 0 the ratio is that of all voxels.
    """
    parts = (squares, counts, sums.variances, sums.sampled)
    total, number, variance, sampled = (part.sum() for part in parts)
    overall = (total / number * sampled / variance).clamp_min(MIN_RATIO)
    if not width:
        return overall.expand(squares.shape)
    widths = (width, width, NARROW, NARROW)
    total, number, variance, sampled = (blur(part, each) for part, each in zip(parts, widths, strict=True))
    known = torch.minimum(number, sampled) > MIN_WEIGHT
    ratio = torch.where(known, total / number * sampled / variance, overall)
    return ratio.clamp(*(overall * bound**2 for bound in BOUNDS))


def held_out_nats(sums: VoxelSums, width: float) -> float:
    """Return twice the negative log-likelihood of the squared residuals of each fold, fitted without it, per voxel."""
    variance = sums.variances / sums.sampled.clamp_min(1)
    total, number, loss = sums.squares.sum(0), sums.counts.sum(0), 0.0
    for squares, counts in zip(sums.squares, sums.counts, strict=True):
        ratio = variance_ratio(total - squares, number - counts, sums, width)
        shown = (counts > 0) & (sums.sampled > 0)
        loss += float((squares / (ratio * variance) + counts * ratio.log())[shown].sum())
    return loss / float(sums.counts.sum())
