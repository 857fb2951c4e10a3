"""Latent diffusion: its two stages, the scale of its latents, and the source that steers it."""

from __future__ import annotations

import torch
from error_law import SHAPE, descend, draw_people, standardise

from dualflow.baselines.latent_diffusion import STEPS, TIMES, LatentDiffusion


def test_the_stages_learn_one_after_the_other():
    """The autoencoder reconstructs better than noise, its latents are scaled, and the diffusion leaves it as it is."""
    torch.manual_seed(0)
    model = LatentDiffusion(SHAPE, 1, width=8)
    standardise(model)
    first = descend(model.first_stage(), 40, 5e-3)
    assert first[-1]["reconstruction"] < first[0]["reconstruction"] - 0.1
    people = draw_people(16, torch.Generator().manual_seed(5))
    pairs = [{name: value[index] for name, value in people.items()} for index in range(16)]
    model.finish_first_stage(pairs, [torch.zeros(1, *SHAPE)] * 16)
    with torch.no_grad():
        latents = model.autoencoder.encode(model.standardised(people["target"]))[0] * model.latent_scale
    assert torch.allclose(latents.square().mean(dim=(0, 2, 3, 4)), torch.ones(4), atol=1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    second = descend(model.objective(), 40, 5e-3)
    assert sum(row["loss"] for row in second[-10:]) < 0.9 * sum(row["loss"] for row in second[:10])
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"network", "control"}


def test_the_times_of_a_sample_fit_to_the_schedulers_step():
    """The step of MONAI's scheduler goes back by TIMES // STEPS, so the times are evenly spaced and end below 0."""
    assert TIMES % STEPS == 0
