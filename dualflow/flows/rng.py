"""Random numbers of a batch, of which each of several processes keeps the rows that are its own.

Every process draws for the whole batch from the same state and keeps its part, so that what is drawn for a person does
not depend on how many processes share the work. Numbers from a generator of one's own are not shared. All are drawn on
the CPU: a seed then gives the same numbers on every device, and its one state is all there is to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_part = (0, 1)


@contextmanager
def batch_shard(rank: int, count: int) -> Iterator[None]:
    """Within, a batch is part `rank` of `count` equal parts."""
    global _part
    before, _part = _part, (rank, count)
    try:
        yield
    finally:
        _part = before


def standard_noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers on `like`'s device."""
    return _drawn(torch.randn, shape, like, generator)


def uniform_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers in [0, 1) of `like`'s shape on its device."""
    return _drawn(torch.rand, tuple(like.shape), like, generator)


def _drawn(
    draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    if generator is not None:
        return draw(shape, generator=generator, dtype=like.dtype).to(like.device)
    (rank, count), (rows, *rest) = _part, shape
    whole = draw((count * rows, *rest), dtype=like.dtype)
    return whole[rank * rows : (rank + 1) * rows].to(like.device)
