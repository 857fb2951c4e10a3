"""The interface that flows and baselines share: a point estimate, and for a density its samples and likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConditionalModel(nn.Module, ABC):
    """A model of a target volume given a source volume and side information."""

    @abstractmethod
    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the point estimate of the target `[N, C, D, H, W]`.

        Args:
            source: `[N, C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.
        """


class ConditionalDensity(ConditionalModel):
    """A model with an exact density, which can be sampled and inverted."""

    @abstractmethod
    def log_prob(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return `log p(target | source, side)` in nats, `[N]`."""

    @abstractmethod
    def sample(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        latents: str | None = None,
    ) -> Tensor:
        """Draw n targets per source, `[n, N, C, D, H, W]`."""

    @abstractmethod
    def encode(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the latents, finest first, and `log |det dz/dtarget|`, `[N]`."""

    @abstractmethod
    def decode(self, latents: Sequence[Tensor], source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the target `[N, C, D, H, W]` with these latents."""
