"""FieldWhitening: an exact bijection between a correlated random field and independent voxels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.flows.bijection import Bijection, sum_per_sample

LENGTHS = (1.2, 2.5, 6.0)
"""Length scales of the correlation in voxels; a first term of length 0 is independent noise."""
LATTICES = 2
"""Number of lattices, each with twice the spacing of the one before; voxels of a further one would not be predicted."""
PARITIES = ((1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1))
"""Groups of the voxels that a lattice has and the next coarser one lacks, in the order of their prediction."""
NEIGHBOURS, REACH = 32, 3
"""Number of voxels that predict another, and their largest distance along an axis, in steps of the lattice."""
JITTER, LEAST_VARIANCE = 1e-4, 1e-2
"""Added to the variance of a neighbour; smallest variance of a voxel given its neighbours."""
REMEMBERED, AT_ONCE = 200_000, 4_000
"""Sets of neighbours whose weights are kept for each group, in 140 bytes each; sets solved together, in some 100 MB."""


class FieldWhitening(Bijection):
    """Predicts every voxel of a field from its nearest earlier neighbours, and divides the rest by its scale.

        z_v = (x_v - sum_u w_vu x_u) / s_v,    u among the neighbours of v in the brain

    The weights are those of simple kriging and s_v is its standard deviation, for a field of variance 1 with the
    correlation `a_0 [h = 0] + sum_k a_k exp(-h^2 / 2 l_k^2)` at a distance of h voxels and the lengths LENGTHS. For
    such a field z is white noise, up to what voxels further away would tell (Vecchia 1988; Datta et al. 2016, section
    2). Voxels outside the brain stay as they are and predict nothing.

    The order is that of a pyramid: the voxels of a coarse lattice, then those between them in seven groups, and again
    on the finest lattice. A group is computed at once, so the inverse costs as much as the forward direction. Before
    a fit the map is the identity.
    """

    shares: Tensor

    def __init__(self) -> None:
        super().__init__()
        white = [1.0, *[0.0] * len(LENGTHS)]
        self.register_buffer("shares", torch.tensor(white))
        self._begin(white)
        self.register_load_state_dict_post_hook(_begin_with_loaded)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def set_correlation(self, shares: Tensor) -> None:
        """Set the shares of the terms in the variance, `[1 + len(LENGTHS)]`, which sum to 1."""
        self.shares.copy_(shares)
        self._begin(self.shares.tolist())

    def _begin(self, values: list[float]) -> None:
        """Take the values of the shares, and forget what was solved for others."""
        self._values = values
        # For each device and group: sets of present neighbours in order, and their weights and log-scales.
        self._solved: dict[tuple[torch.device, int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map fields `[k N, C, D, H, W]` to white noise.

        The context is that of `weights` for N masks; mask n is that of the volumes n, n + N, ...
        """
        assert context is not None
        folded = _folded(x, len(context))
        z = folded.clone()
        for lattice, group, part in _coarsest_first(x):
            members, weights = _members(z, lattice, group), context[:, :, part]
            rest = members - _predicted(folded, weights, lattice, group)
            members.copy_(rest * _log_scale(weights, members).neg().exp())
        return _unfolded(z, x), -_total(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map white noise `[k N, C, D, H, W]` to fields; the context is that of `forward`."""
        assert context is not None
        x = _folded(z, len(context)).clone()
        for lattice, group, part in _coarsest_first(z):
            members, weights = _members(x, lattice, group), context[:, :, part]
            members.copy_(members * _log_scale(weights, members).exp() + _predicted(x, weights, lattice, group))
        return _unfolded(x, z), _total(z, context)

    @torch.no_grad()
    def weights(self, inside: Tensor) -> Tensor:
        """Return the context of brain masks, `[N, 1, D, H, W]` to `[N, NEIGHBOURS + 1, V]` for the V predicted voxels.

        In the order of prediction it holds the weight of each neighbour of a voxel, 0 for those outside, and the
        logarithm of the voxel's scale.
        """
        groups = list(_coarsest_first(inside))
        context = self.shares.new_zeros(len(inside), NEIGHBOURS + 1, groups[-1][2].stop if groups else 0)
        if inside.is_meta or not any(self._values[1:]):
            return context
        mask = inside.long()
        for lattice, group, part in groups:
            members = _members(mask, lattice, group)
            present = torch.zeros_like(members)
            for bit, neighbour in enumerate(_neighbours(mask, lattice, group)):
                present.add_(neighbour, alpha=1 << bit)
            context[:, :, part] = self._solutions((present * members).flatten(1), lattice, group).transpose(0, 1)
        return context

    def _solutions(self, sets: Tensor, lattice: int, group: int) -> Tensor:
        """Return weights and log-scale `[NEIGHBOURS + 1, ...]` for sets of present neighbours, a bit for each."""
        key = sets.device, lattice, group
        alone = sets.new_zeros(1), sets.new_zeros(NEIGHBOURS + 1, 1, dtype=torch.float32)
        known, columns = self._solved.get(key, alone)
        place = torch.searchsorted(known, sets).clamp_max_(len(known) - 1)
        if len(new := torch.unique(sets[known[place] != sets])):
            full = len(known) + len(new) > REMEMBERED
            known, order = torch.cat([known, new]).sort()
            solved = [self._solve(part, lattice, group) for part in new.split(AT_ONCE)]
            columns = torch.cat([columns, *solved], dim=1)[:, order]
            if not full:
                self._solved[key] = known, columns
            place = torch.searchsorted(known, sets)
        return columns.index_select(1, place.flatten()).view(-1, *place.shape)

    def _solve(self, sets: Tensor, lattice: int, group: int) -> Tensor:
        """Solve the kriging equations of sets of present neighbours `[U]`; return `[NEIGHBOURS + 1, U]`."""
        places = 2.0**lattice * torch.tensor(OFFSETS[group], dtype=torch.float64, device=sets.device)
        present = (sets[:, None] >> torch.arange(len(places), device=sets.device)) & 1 > 0
        among = self._correlation((places[:, None] - places).square().sum(dim=-1))
        to_voxel = torch.where(present, self._correlation(places.square().sum(dim=-1)), 0.0)
        covariance = torch.where(present[:, :, None] & present[:, None], among, 0.0)
        covariance.diagonal(dim1=1, dim2=2).copy_(torch.ones_like(to_voxel) + JITTER)
        weights = torch.cholesky_solve(to_voxel[..., None], torch.linalg.cholesky(covariance))[..., 0]
        variance = (1 - (weights * to_voxel).sum(dim=1, keepdim=True)).clamp_min(LEAST_VARIANCE)
        return torch.cat([weights, variance.log() / 2], dim=1).T.float()

    def _correlation(self, squared_distance: Tensor) -> Tensor:
        """Return the correlation of different voxels at squared distances."""
        terms = zip(self._values[1:], LENGTHS, strict=True)
        parts = [share * torch.exp(-0.5 * squared_distance / length**2) for share, length in terms]
        return torch.stack(parts).sum(dim=0)


def _begin_with_loaded(module: nn.Module, _: object) -> None:
    assert isinstance(module, FieldWhitening)
    module._begin(module.shares.tolist())


def _offsets(group: int) -> list[tuple[int, ...]]:
    """Return the nearest earlier voxels around one of a group, in steps of the lattice."""
    earlier = {(0, 0, 0), *PARITIES[:group]}

    def is_earlier(offset: tuple[int, ...]) -> bool:
        return tuple((p + i) % 2 for p, i in zip(PARITIES[group], offset, strict=True)) in earlier

    around = product(range(-REACH, REACH + 1), repeat=3)
    return sorted(filter(is_earlier, around), key=lambda offset: (sum(i * i for i in offset), offset))[:NEIGHBOURS]


OFFSETS = tuple(_offsets(group) for group in range(len(PARITIES)))
"""Neighbours of the voxels of each group, nearest first."""


def _coarsest_first(volume: Tensor) -> Iterator[tuple[int, int, slice]]:
    """Yield the lattices of `[N, C, D, H, W]`, as powers of two of their spacing, and their groups, as predicted.

    The slice says where the voxels of the group are among all that are predicted.
    """
    start = 0
    for lattice, group in product(reversed(range(LATTICES)), range(len(PARITIES))):
        size = _members(volume[:1, :1], lattice, group).numel()
        if size:
            yield lattice, group, slice(start, start + size)
            start += size


def _members(volume: Tensor, lattice: int, group: int) -> Tensor:
    """Return the voxels of a group, a view of `[N, C, D, H, W]`."""
    d, h, w = (slice(parity << lattice, None, 2 << lattice) for parity in PARITIES[group])
    return volume[:, :, d, h, w]


def _neighbours(volume: Tensor, lattice: int, group: int) -> Iterator[Tensor]:
    """Yield each neighbour of a group's voxels, `[N, C, d, h, w]`; 0 beyond the grid."""
    spacing = 1 << lattice
    padded = F.pad(volume[:, :, ::spacing, ::spacing, ::spacing], (REACH,) * 6)
    for place in _places(group, padded.shape[2:]):
        yield padded[place]


@lru_cache(maxsize=256)  # on small grids, making the slices takes as long as the sums
def _places(group: int, padded: torch.Size) -> list[tuple[slice, ...]]:
    """Return where the neighbours of a group's voxels are in a lattice of a padded size.

    Slices, not windows: the gradient of a window is as large as all of them.
    """
    return [
        (slice(None), slice(None), *(
            slice(REACH + parity + step, size - REACH + step, 2)
            for parity, step, size in zip(PARITIES[group], offset, padded, strict=True)
        ))
        for offset in OFFSETS[group]
    ]  # fmt: skip


def _predicted(x: Tensor, weights: Tensor, lattice: int, group: int) -> Tensor:
    """Return the kriging prediction of a group's voxels, `[N, C, d, h, w]`, by weights `[N, NEIGHBOURS + 1, V]`."""
    total = torch.zeros_like(_members(x, lattice, group))
    rows = weights.view(*weights.shape[:2], 1, *total.shape[2:])
    for weight, neighbour in zip(rows.unbind(1), _neighbours(x, lattice, group), strict=False):
        total.addcmul_(weight, neighbour)
    return total


def _log_scale(weights: Tensor, members: Tensor) -> Tensor:
    """Return the log-scales of a group's voxels, `[N, 1, d, h, w]`."""
    return weights[:, -1:].view(len(weights), 1, *members.shape[2:])


def _folded(x: Tensor, count: int) -> Tensor:
    """Return `[k N, C, D, H, W]` as `[N, k C, D, H, W]`: volumes with the same weights are channels."""
    return x.view(-1, count, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def _unfolded(x: Tensor, like: Tensor) -> Tensor:
    """Undo `_folded`, given a tensor of the original size."""
    return x.view(len(x), -1, *like.shape[1:]).transpose(0, 1).reshape(like.shape)


def _total(x: Tensor, context: Tensor) -> Tensor:
    """Return the sum of the log-scales of each volume's voxels, `[k N]`."""
    return x.shape[1] * sum_per_sample(context[:, -1]).repeat(len(x) // len(context))
