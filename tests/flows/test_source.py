"""The flow of the source: its log-density is that of its latents, with the log-determinant."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import batch, flows_with, parametrize_flows, trained


@parametrize_flows(flows_with(source="glow"))
def test_the_log_density_counts_every_latent(name):
    """The density is log p(y) = log|det| + sum over levels of the standard normal's log-density."""
    source, (_, volume, _) = trained(name).source, batch()
    encoding = source.flow.encode(volume, source.no_maps)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = encoding.log_det + sum(normal.log_prob(z).flatten(1).sum(1) for z in encoding.latents)
    assert source.log_prob(volume).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
