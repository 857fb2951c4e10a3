"""The interface that flows and baselines share: a point estimate, samples, and for a density its likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

SAMPLES_AT_ONCE = 8
"""Samples drawn together; fewer leave the processor idle."""


class ConditionalModel(nn.Module, ABC):
    """A model of a target volume given a source volume and side information."""

    @abstractmethod
    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the point estimate of the target `[N, C, D, H, W]`.

        Args:
            source: `[N, C or 2C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.
        """


class ConditionalSampler(ConditionalModel):
    """A model with a distribution, which can be sampled."""

    def sample(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw n targets per source, `[n, N, C, D, H, W]`; the temperature scales their spread.

        The same generator state gives the same targets. The errors are those of `stream`.
        """
        return torch.cat(list(self.stream(source, side, n, temperature, generator)))

    @abstractmethod
    def stream(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield n targets per source a few at a time, `[k, N, C, D, H, W]`, so that memory does not grow with n.

        The noise of a target does not depend on how many are drawn at once.
        """


class ConditionalDensity(ConditionalSampler):
    """A model with an exact density, which can be sampled and inverted."""

    @abstractmethod
    def log_prob(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return `log p(target | source, side)` in nats, `[N]`."""

    @abstractmethod
    def encode(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the latents, finest first, and `log |det dz/dtarget|`, `[N]`."""

    @abstractmethod
    def decode(self, latents: Sequence[Tensor], source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the target `[N, C, D, H, W]` with these latents."""
