"""A level: channel order before training, its inverse, its density and the activations of its steps."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.attention import ATTENTIONS
from dualflow.flows.level import Level, no_maps
from dualflow.flows.presets import preset
from dualflow.flows.squeeze import HaarSqueeze


def test_untrained_haar_level_keeps_band_order():
    """An untrained Haar level equals the Haar transform, so its split factors out detail bands."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 4, 4, 4)
    spec = preset("dualflow", levels=1, steps=[3], hidden=[4], transition_steps=2)
    level = Level(spec, 0, 1)
    torch.testing.assert_close(level(x, no_maps(spec)[0])[0], HaarSqueeze()(x)[0], rtol=0, atol=1e-5)


@pytest.fixture(params=sorted(ATTENTIONS))
def level(request):
    """A level whose layers are not the identity, and its maps."""
    torch.manual_seed(0)
    spec = preset("dualflow", levels=1, steps=[2], hidden=[4], transition_steps=1, attention=request.param)
    made = Level(spec, 0, 1).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval(), no_maps(spec)[0]


def test_the_inverse_undoes_the_level(level):
    """Its log-determinant is minus that of the level."""
    made, maps = level
    x = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64)
    z, log_det = made(x, maps)
    back, undone = made.inverse(z, maps)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(undone, -log_det, rtol=0, atol=1e-8)


def test_the_log_determinant_is_that_of_the_jacobian(level):
    made, maps = level
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: made(flat.reshape(x.shape), maps)[0].flatten(), x.flatten()
    )
    assert made(x, maps)[1].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-6)


def test_a_trace_is_the_level_with_the_activations_of_each_step(level):
    made, maps = level
    x = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64)
    z, log_det, activations = made.trace(x, maps)
    for traced, direct in zip((z, log_det), made(x, maps), strict=True):
        torch.testing.assert_close(traced, direct)
    assert len(activations) == len(made.steps)
    assert all(step["coupling"].shape == z.shape for step in activations)
