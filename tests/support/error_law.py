"""A law of errors that is known: a shift of each person, an effect of source and side values, and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.baselines.residual_sampler import ResidualSampler
from dualflow.flows.objective import Batch, Objective

SHAPE = (8, 8, 8)
SHIFT_SD, NOISE_SD, SIDE_EFFECT = 0.6, 0.5, 0.8


def draw_people(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a batch whose target is source + SIDE_EFFECT side + N(0, SHIFT_SD^2) per person + noise of each voxel."""
    source = 0.2 + torch.rand(count, 1, *SHAPE, generator=generator)
    side = 2.0 * (torch.rand(count, 1, generator=generator) < 0.5) - 1
    shift = SHIFT_SD * torch.randn(count, 1, 1, 1, 1, generator=generator)
    noise = NOISE_SD * torch.randn(count, 1, *SHAPE, generator=generator)
    target = source + SIDE_EFFECT * side[:, :, None, None, None] + shift + noise
    return {"target": target, "source": source, "side": side, "mask": torch.ones_like(source, dtype=torch.bool)}


def standardise(model: ResidualSampler) -> None:
    """Set the sizes of the model's bands, as its fit does; the closed-form prediction is 0 before the fit."""
    people = draw_people(200, torch.Generator().manual_seed(99))
    bands = model.haar(people["target"])[0]
    model.band_scale.copy_(bands.square().mean(dim=(0, 2, 3, 4)).sqrt()[:, None, None, None])


def descend(objective: Objective, steps: int, rate: float = 5e-3, people: int = 16) -> list[dict[str, float]]:
    """Take optimiser steps on new people each; return the terms of each step."""
    generator, history = torch.Generator().manual_seed(0), []
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    torch.manual_seed(0)
    for step in range(steps):
        objective.set_progress(step / steps)
        terms = objective(Batch(**draw_people(people, generator)))
        optimiser.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        history.append({name: float(value.detach()) for name, value in terms.items()})
    objective.eval()
    return history
