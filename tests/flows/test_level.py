"""A level: channel order before training."""

from __future__ import annotations

import torch

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
