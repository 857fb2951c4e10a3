"""Random numbers that do not depend on the device or on the number of processes.

Each process draws for the whole batch from the same state and keeps the rows of its shard, so a subject's noise does
not depend on how many processes share the batch. Draws from an explicit generator are not sharded. All numbers come
from the CPU: a seed gives the same numbers on every device, and a checkpoint keeps one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

EVALUATION_SEED = 0
"""Seed of noise in evaluation, so that validations are comparable."""
# Rank and number of shards of the current batch.
_shard = (0, 1)


@contextmanager
def batch_shard(rank: int, count: int) -> Iterator[None]:
    """Treat every batch in this context as shard `rank` of `count` equal shards."""
    global _shard
    previous, _shard = _shard, (rank, count)
    try:
        yield
    finally:
        _shard = previous


def standard_noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard normal numbers of a shape, with `like`'s type and device."""
    return _draw(torch.randn, shape, like, generator)


def uniform_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw uniform numbers in [0, 1) with `like`'s shape, type and device."""
    return _draw(torch.rand, tuple(like.shape), like, generator)


def _draw(
    sampler: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    if generator is not None:
        return sampler(shape, generator=generator, dtype=like.dtype).to(like.device)
    (rank, count), (rows, *rest) = _shard, shape
    full = sampler((count * rows, *rest), dtype=like.dtype)
    return full[rank * rows : (rank + 1) * rows].to(like.device)
