"""The multi-scale flow: squeeze, steps and split per level; half of the channels leaves at every level but the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dualflow.flows.actnorm import ActNorm
from dualflow.flows.bijection import Bijection, Sequential, zero_log_det
from dualflow.flows.coupling import COUPLINGS
from dualflow.flows.mixing import InvertibleMixing, random_rotations
from dualflow.flows.network import Conditioner
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import SQUEEZES


class Level(Bijection):
    """One resolution: a squeeze, then steps of actnorm, 1x1x1 mixing and coupling (Kingma & Dhariwal 2018, figure 2).

    The context is this level's feature map `[N, F, d, h, w]` on the squeezed grid, or None. It is projected to the
    couplings' hidden width once, for all steps.
    """

    def __init__(self, spec: FlowSpec, index: int, in_channels: int, context_channels: int = 0) -> None:
        super().__init__()
        channels, hidden = 8 * in_channels, spec.hidden[index]
        coupling = COUPLINGS[spec.coupling]
        rotations = random_rotations(channels, spec.steps[index], closing=spec.squeeze == "haar")
        self.squeeze = SQUEEZES[spec.squeeze]()
        self.project = nn.Conv3d(context_channels, hidden, 1) if context_channels else None
        self.steps = Sequential(
            Sequential(
                [
                    ActNorm(channels),
                    InvertibleMixing(rotation),
                    coupling(
                        Conditioner(channels // 2, coupling.parameters_per_channel * channels // 2, hidden),
                        spec.log_scale_bound,
                    ),
                ]
            )
            for rotation in rotations
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squeeze, then the steps."""
        x, _ = self.squeeze(x)
        z: Tensor
        z, log_det = self.steps(x, self._projected(context))
        return z, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the steps, then the squeeze."""
        z, log_det = self.steps.inverse(z, self._projected(context))
        return self.squeeze.inverse(z)[0], log_det

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Initialise the steps on the squeezed batch."""
        return self.steps.initialize(self.squeeze(x)[0], self._projected(context))

    def _projected(self, context: Tensor | None) -> Tensor | None:
        return None if self.project is None else self.project(context)


class MultiScaleFlow(nn.Module):
    """Levels joined by splits: `x -> (z_1, ..., z_L)`, finest first (Dinh et al. 2017, section 3.6).

    After level l the first half of the channels, `h_l`, goes on and the second half leaves as the latent `z_l`; at the
    last level everything leaves. `h_l` is thus a bijection of all coarser latents, and may condition the prior of z_l.
    """

    def __init__(self, spec: FlowSpec, in_channels: int, context_channels: Sequence[int] = ()) -> None:
        super().__init__()
        contexts = context_channels or [0] * spec.levels
        self.levels = nn.ModuleList(
            Level(spec, index, in_channels * 4**index, contexts[index]) for index in range(spec.levels)
        )

    def encode(self, x: Tensor, contexts: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        """Map data to `(latents, what went on below each of them, log_det[N])`, finest first."""
        return self._descend(x, contexts, lambda level, h, context: level(h, context))

    @torch.no_grad()
    def initialize(self, x: Tensor, contexts: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Set every actnorm from the batch, level by level; return latents and coarser parts as `encode` does."""
        latents, coarser, _ = self._descend(
            x, contexts, lambda level, h, context: (level.initialize(h, context), zero_log_det(h))
        )
        return latents, coarser

    def decode(
        self, choose: Callable[[int, Tensor | None], Tensor], contexts: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Map latents to `(data, -log_det[N])`, coarsest first.

        `choose(level, h)` gives the latent of a level once the part h that went on below it is known: a given latent,
        or a draw from a prior that sees the coarser latents.
        """
        h: Tensor | None = None
        total: Tensor | None = None
        for index in reversed(range(len(self.levels))):
            z = choose(index, h)
            level = self.levels[index]
            assert isinstance(level, Level)
            h, log_det = level.inverse(z if h is None else torch.cat([h, z], dim=1), contexts[index])
            total = log_det if total is None else total + log_det
        assert h is not None
        assert total is not None
        return h, total

    def _descend(
        self,
        x: Tensor,
        contexts: Sequence[Tensor | None],
        apply: Callable[[Level, Tensor, Tensor | None], tuple[Tensor, Tensor]],
    ) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        latents: list[Tensor] = []
        coarser: list[Tensor | None] = []
        log_det = zero_log_det(x)
        for index, level in enumerate(self.levels):
            assert isinstance(level, Level)
            x, term = apply(level, x, contexts[index])
            log_det = log_det + term
            if index + 1 < len(self.levels):
                x, z = x.chunk(2, dim=1)
                latents.append(z)
                coarser.append(x)
            else:
                latents.append(x)
                coarser.append(None)
        return latents, coarser, log_det


def level_channels(in_channels: int, levels: int) -> list[int]:
    """Channels of the latent of each level, finest first: 4, 16, 128 for one channel and three levels."""
    return [in_channels * 4 ** (level + 1) * (2 if level + 1 == levels else 1) for level in range(levels)]


def level_shapes(shape: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Spatial size of the latent of each level, finest first."""
    return [tuple(size // 2 ** (level + 1) for size in shape) for level in range(levels)]
