"""RectifiedFlow: velocity matching between noise and the error of a closed-form prediction (Liu et al. 2023)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from dualflow.baselines.correction import BANDS
from dualflow.baselines.residual_sampler import NetworkInputs, ResidualObjective, ResidualSampler
from dualflow.flows.objective import Objective, mean_over_scans
from dualflow.flows.rng import standard_noise, uniform_noise

TIMES = 1000
"""Number of discrete times."""
STEPS = 4
"""Midpoint steps of a sample, two evaluations of the network each; eight Euler steps shrink normal values by 15 %."""
DRAWS = 4
"""Draws of noise and time of a validation, and of noise for the mean."""
GROUPS, HEAD = 1, 16


class RectifiedFlow(ResidualSampler):
    """Rectified flow: an ordinary differential equation from noise z at t = 1 to the error e at t = 0.

    On the line `e_t = (1 - t) e + t z`, the network F estimates the velocity `e - z`, of mean square 2:

        v(e_t, t) = c (1 - 2t) e_t + sqrt(c) F(e_t, t, inputs),    c = 1 / ((1 - t)^2 + t^2).

    The first term is the best linear estimate for e of variance 1 (the preconditioning of Karras et al. 2022), so F
    has a target of unit variance at every t, and F = 0 draws independent standard normal values. At t = 1,
    `v + z = F` estimates the mean of e.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, a multiple of eight; doubled at each of the two coarser scales.
    """

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 8
    ) -> None:
        super().__init__(shape, side_features, source_channels, width=width)
        from monai.networks.nets import DiffusionModelUNet

        self.network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=BANDS + self.input_channels,
            out_channels=BANDS,
            channels=(width, 2 * width, 4 * width),
            num_res_blocks=1,
            attention_levels=(False, False, False),
            norm_num_groups=GROUPS,
            num_head_channels=HEAD,
        )

    def objective(self) -> Objective:
        """Return the mean squared error of the velocity."""
        return VelocityMatching(self)

    def velocity(self, state: Tensor, time: Tensor, given: NetworkInputs) -> Tensor:
        """Return the velocity at states e_t and times `[N]`, 0 to TIMES; both are 0 outside the brain."""
        t = (time / TIMES)[:, None, None, None, None]
        c = 1 / ((1 - t).square() + t.square())
        out: Tensor = self.network(torch.cat([state, given.inputs], dim=1), time)
        velocity: Tensor = (c * (1 - 2 * t) * state + c.sqrt() * out) * given.inside
        return velocity

    def expect(self, given: NetworkInputs, generator: torch.Generator) -> Tensor:
        """Return the mean of the first step's estimates of e over a few draws of noise."""
        total = torch.zeros(())
        for _ in range(DRAWS):
            noise = standard_noise((1, BANDS, *given.inputs.shape[2:]), given.inputs, generator) * given.inside
            total = total.to(noise) + noise + self.velocity(noise, noise.new_full((len(noise),), TIMES), given)
        return total / DRAWS

    def draw(self, given: NetworkInputs, temperature: float, generator: torch.Generator) -> Tensor:
        """Integrate from noise by the midpoint rule."""
        shape = (len(given.inputs), BANDS, *given.inputs.shape[2:])
        state = temperature * standard_noise(shape, given.inputs, generator) * given.inside
        scheduler = _scheduler()
        scheduler.set_timesteps(STEPS)
        length = TIMES // STEPS
        for time in range(TIMES, 0, -length):
            half = time - length // 2
            middle, _ = scheduler.step(self._at(state, time, given), time, state, half)
            state, _ = scheduler.step(self._at(middle, half, given), time, state, time - length)
        return state

    def _at(self, state: Tensor, time: int, given: NetworkInputs) -> Tensor:
        return self.velocity(state, state.new_full((len(state),), time), given)


class VelocityMatching(ResidualObjective):
    """Mean squared error of a rectified flow's velocity, at uniformly random times.

    The expectation is over persons, times and noise:

        loss = E |v((1 - t) e + t z, t) - (e - z)|^2
    """

    def terms(self, bands: Tensor, given: NetworkInputs, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return `loss`; in validation the mean over a few draws with evenly spread times."""
        model = self.sampler
        assert isinstance(model, RectifiedFlow)
        losses = []
        for draw in range(1 if generator is None else DRAWS):
            noise = standard_noise(tuple(bands.shape), bands, generator) * given.inside
            share = uniform_noise(bands[:, 0, 0, 0, 0], generator)
            time = TIMES * (share if generator is None else (share + draw) / DRAWS)
            state = _scheduler().add_noise(bands, noise, time)
            losses.append(
                mean_over_scans((model.velocity(state, time, given) - (bands - noise)).square(), given.inside)
            )
        return {"loss": torch.stack(losses).mean()}


@cache
def _scheduler() -> Any:
    """Return MONAI's scheduler; it is no part of a model, because it is an incomplete module."""
    from monai.networks.schedulers import RFlowScheduler

    return RFlowScheduler(num_train_timesteps=TIMES, use_discrete_timesteps=False)
