"""Random numbers that do not depend on the device or on the number of processes.

Each process draws for the whole batch from the same state and keeps the rows of its shard, so a subject's noise does
not depend on how many processes share the batch. Draws from an explicit generator are not sharded. All numbers come
from the CPU: a seed gives the same numbers on every device, and a checkpoint keeps one state.

Samples have a generator each (SampleGenerators), so a sample does not depend on how many are drawn at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor

EVALUATION_SEED = 0
"""Seed of noise in evaluation, so that validations are comparable."""
_LARGEST_SEED = 2**63 - 1
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


class SampleGenerators(torch.Generator):
    """A generator per sample, for a batch of K samples: rows `k N` to `(k + 1) N - 1` belong to sample k.

    `standard_noise` and `uniform_noise` draw the rows of each sample from its own generator. Draws that bypass them use
    one more generator, shared by the batch.

    Args:
        seeds: seed of each sample.
    """

    samples: list[torch.Generator]

    def __new__(cls, seeds: Sequence[int]) -> Self:
        """Create the generators; a torch.Generator takes no arguments of a subclass in `__init__`."""
        generators = super().__new__(cls)
        generators.manual_seed(sum(seeds) % _LARGEST_SEED)
        generators.samples = [torch.Generator().manual_seed(seed) for seed in seeds]
        return generators

    def __init__(self, seeds: Sequence[int]) -> None:
        pass

    def draw(self, sampler: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Draw numbers of a shape whose first axis has an equal number of rows for each sample."""
        rows, *rest = shape
        share, remainder = divmod(rows, len(self.samples))
        assert not remainder, f"{rows} rows for {len(self.samples)} samples"
        return torch.cat([sampler((share, *rest), generator=each, dtype=dtype) for each in self.samples])


def sample_seeds(count: int, generator: torch.Generator | None = None) -> list[int]:
    """Draw seeds of `count` samples; drawing them in several calls gives the same seeds."""
    seeds: list[int] = torch.randint(_LARGEST_SEED, (count,), generator=generator).tolist()
    return seeds


def seed_batches(count: int, at_once: int, generator: torch.Generator | None = None) -> Iterator[SampleGenerators]:
    """Yield the generators of `count` samples, `at_once` at a time; their seeds do not depend on how many that are."""
    for start in range(0, count, at_once):
        yield SampleGenerators(sample_seeds(min(at_once, count - start), generator))


def standard_noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard normal numbers of a shape, with `like`'s type and device."""
    return _draw(torch.randn, shape, like, generator)


def uniform_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw uniform numbers in [0, 1) with `like`'s shape, type and device."""
    return _draw(torch.rand, tuple(like.shape), like, generator)


def _draw(
    sampler: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    if isinstance(generator, SampleGenerators):
        return generator.draw(sampler, shape, like.dtype).to(like.device)
    if generator is not None:
        return sampler(shape, generator=generator, dtype=like.dtype).to(like.device)
    (rank, count), (rows, *rest) = _shard, shape
    full = sampler((count * rows, *rest), dtype=like.dtype)
    return full[rank * rows : (rank + 1) * rows].to(like.device)
