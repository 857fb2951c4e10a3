"""Closed-form fit of a flow's base to the latents of training people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from math import prod
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from dualflow.data.dataset import Item, PairDataset, collate
from dualflow.flows.condition import Condition
from dualflow.flows.dequantization import prepare_target
from dualflow.flows.latent_statistics import standardise
from dualflow.flows.linalg import with_fixed_signs
from dualflow.flows.model import DualFlow
from dualflow.flows.multiscale import joined
from dualflow.flows.person_features import person_values
from dualflow.flows.rng import EVALUATION_SEED
from dualflow.flows.voxel_features import without_detail
from dualflow.layout import Scan
from dualflow.training.device import autocast, device_of, source_and_side
from dualflow.training.subspace_fit import fit_law

BATCH = 8
MIN_VOXELS = 5
"""Smallest region or block whose mean is a direction, voxels."""
MAX_BLOCKS = 96
"""Maximum number of blocks; each costs a backward pass, and a number for every latent."""
GRADIENT_PEOPLE = 4
"""Maximum number of scans whose gradients are averaged; the mean of twice as many hardly differs."""
GRADIENT_VOXELS = GRADIENT_PEOPLE * 48 * 56 * 48
"""Voxels of the scans that are decoded at once with gradients: all of them at 4 mm, one at 2 mm."""


def fit_base(
    flow: DualFlow,
    pairs: PairDataset,
    regions: Tensor | None,
    folds: Sequence[int],
    seed: int,
    *,
    initial: bool = False,
    precision: str = "auto",
) -> dict[str, float]:
    """Set person features, directions and law of the base in place, from training pairs.

    The directions are the gradients of region means with respect to the latents: fixed functionals, so that the
    coordinates of training people are distributed as those of new people if their mean images are cross-fitted.
    Principal components of few people would mostly be noise.

    Args:
        flow: a flow whose actnorms are initialised.
        pairs: training pairs, with cross-fitted means and spreads if mean and spread have them.
        regions: labels `[D, H, W]` of regions, 0 elsewhere; None uses blocks alone.
        folds: cross-fitting fold of each pair.
        seed: seed of the mixture's starts.
        initial: before training; the flow is nearly linear then, and the gradients of one scan serve for all.
        precision: `train.precision`, of the convolutions while gradients are computed.

    Returns:
        Choices of the fit, for the model card; empty for a flow without such a base.
    """
    base = flow.base
    if base is None or flow.person is None:
        return {}
    flow.eval()
    people = (source_and_side(item, flow) for item in pairs.items)
    values = torch.cat([person_values(without_detail(source, flow.source_channels), side) for source, side in people])
    flow.person.fit(values)
    weights = region_weights(pairs, regions, 2**flow.spec.levels).to(device_of(flow))
    rows = mean_gradients(flow, pairs, weights, 1 if initial else GRADIENT_PEOPLE, precision)
    basis = orthonormal(rows, base.law.rank)
    coordinates = torch.cat([joined_latents(flow, *batch) @ basis for batch in conditioned_batches(flow, pairs, BATCH)])
    subjects = [Scan.parse(key).subject for key in pairs.scans]
    turn, facts = fit_law(coordinates, flow.person(values), folds, subjects, base.law, seed)
    base.directions.copy_(basis @ turn.to(basis))
    return facts


@torch.no_grad()
def conditioned_batches(flow: DualFlow, pairs: PairDataset, batch_size: int) -> Iterator[tuple[Tensor, Condition]]:
    """Yield targets, their background filled with the same noise at every call, and their conditions."""
    device = device_of(flow)
    for start in range(0, len(pairs), batch_size):
        batch = collate([pairs[index] for index in range(start, min(start + batch_size, len(pairs)))])
        target, source, side, mask = (batch[name].to(device) for name in ("target", "source", "side", "mask"))
        generator = torch.Generator().manual_seed(EVALUATION_SEED + start)
        yield prepare_target(target, mask, flow.spec, generator), flow.condition(source, side, *_given(batch, device))


def _given(batch: Item, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Return the mean images and the spreads that a batch has in place of the flow's, or None."""
    mean, spread = (batch[name].to(device) if name in batch else None for name in ("mean", "spread"))
    return mean, spread


@torch.no_grad()
def joined_latents(flow: DualFlow, target: Tensor, condition: Condition) -> Tensor:
    """Return the standardised latents of all levels, `[N, M]`."""
    return joined(standardise(flow, flow.encoding(target, condition), condition))


def region_weights(pairs: PairDataset, regions: Tensor | None, block: int) -> Tensor:
    """Return the weights `[R, D, H, W]` of region means: of the labels, and of blocks of about `block` voxels a side.

    The blocks serve regions that the labels do not name, such as white matter. They are larger where there would be
    more than MAX_BLOCKS.
    """
    inside = torch.stack([pairs[index]["mask"][0] for index in range(min(len(pairs), BATCH))]).float().mean(0) > 0.5
    shape = inside.shape
    sizes = blocks_per_axis(shape, block)
    grid = torch.arange(prod(sizes)).view(1, 1, *sizes).float()
    blocks = F.interpolate(grid, size=shape, mode="nearest")[0, 0].long()
    maps = [(blocks + 1) * inside] if regions is None else [(blocks + 1) * inside, regions * inside]
    counts = [torch.bincount(one.flatten().long()) for one in maps]
    chosen = [
        (one, label)
        for one, voxels in zip(maps, counts, strict=True)
        for label in range(1, len(voxels))
        if voxels[label] >= MIN_VOXELS
    ]
    weights = torch.empty(len(chosen), *shape)  # filled row by row: on a fine grid it takes half a gigabyte
    for row, (one, label) in zip(weights, chosen, strict=True):
        row.copy_(one == label)
        row /= row.sum()
    return weights


def blocks_per_axis(shape: Sequence[int], block: int) -> list[int]:
    """Return how many blocks of at least `block` voxels a side lie along each axis, at most MAX_BLOCKS in all."""
    grids = ([max(size // edge, 1) for size in shape] for edge in count(block))
    return next(numbers for numbers in grids if prod(numbers) <= MAX_BLOCKS)


def mean_gradients(
    flow: DualFlow, pairs: PairDataset, weights: Tensor, people: int = GRADIENT_PEOPLE, precision: str = "auto"
) -> Tensor:
    """Return the gradients `[R, M]` of weighted means of the target with respect to the standardised latents.

    They are averages over up to `people` scans, each at its own latents. At latents of 0 a mean may change twice as
    fast as it does there, and in other directions.
    """
    chosen = pairs.spaced(people)
    ((target, condition),) = conditioned_batches(flow, chosen, len(chosen))
    with torch.no_grad():
        points = standardise(flow, flow.encoding(target, condition), condition)
    rows = weights.new_zeros(len(weights), flow.latent_count)
    size = decoded_at_once(flow)
    for start in range(0, len(chosen), size):
        part = itemgetter(slice(start, start + size))
        some = [part(point).detach().requires_grad_() for point in points]
        share = len(some[0]) / len(chosen)
        with frozen(flow), torch.enable_grad(), autocast(precision, weights.device):
            _add_gradients(rows, share, flow, some, tree_map_only(Tensor, part, condition), weights)
    return rows.float()


def decoded_at_once(flow: DualFlow) -> int:
    """Return the largest number of scans that are decoded together while gradients are computed."""
    return min(GRADIENT_PEOPLE, max(1, GRADIENT_VOXELS // prod(flow.shape)))


def _add_gradients(
    rows: Tensor, share: float, flow: DualFlow, points: list[Tensor], condition: Condition, weights: Tensor
) -> None:
    """Add `share` times the gradients of each weighted mean, averaged over scans that are decoded together."""
    image = flow.decode_standardised(points, condition)[:, 0]
    # The scans are decoded once; each mean takes a backward pass of its own.
    for row, weight in zip(rows, weights, strict=True):
        row += share * joined(torch.autograd.grad((image * weight).sum(), points, retain_graph=True)).mean(0)


@contextmanager
def frozen(flow: DualFlow) -> Iterator[None]:
    """Compute gradients of latents alone: many backward passes need no part of the graph that leads to parameters."""
    parameters = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    flow.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()


def orthonormal(rows: Tensor, least: int) -> Tensor:
    """Return an orthonormal basis `[M, R]` of the span of `rows[R, M]`, completed at random to at least `least`.

    Its vectors are the principal axes of the rows, of which those that the rows share most come first.
    """
    missing, count = max(least - len(rows), 0), len(rows)
    extra = torch.randn(missing, rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows)
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    basis, triangle = torch.linalg.qr(torch.cat([unit, extra]).T)
    axes = with_fixed_signs(torch.linalg.svd(triangle[:count, :count])[0])
    return torch.cat([basis[:, :count] @ axes, basis[:, count:]], dim=1)
