"""Conditional priors of the latents."""

import torch

from dualflow.flows.presets import preset
from dualflow.flows.prior import LEAKY_SLOPE, LevelChannels, LevelPrior, PriorContext


def test_a_leaky_prior_shrinks_negative_means_alone():
    """Its log-scales are those of the prior without the LeakyReLU, positive and negative ones alike."""
    torch.manual_seed(0)
    source, z = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 2, 4, 4, 4)
    spec = preset("dualflow", prior_mean=True)
    plain = LevelPrior(LevelChannels(2, 3, 0, 0), spec)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    leaky = LevelPrior(LevelChannels(2, 3, 0, 0), spec.replace(prior_leaky=True))
    leaky.load_state_dict(plain.state_dict())
    context = PriorContext(source, None, None)
    (mean, log_scale), (shrunk, same) = (one.mean_and_log_scale(context, z) for one in (plain, leaky))
    assert (mean < 0).any()
    assert (log_scale < 0).any()
    torch.testing.assert_close(shrunk, torch.where(mean < 0, LEAKY_SLOPE * mean, mean))
    assert torch.equal(same, log_scale)
