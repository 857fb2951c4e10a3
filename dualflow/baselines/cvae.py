"""ConditionalVAE: a conditional variational autoencoder of the error of a closed-form prediction (Sohn et al. 2015)."""

from __future__ import annotations

from math import log, pi
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.baselines.correction import BANDS
from dualflow.baselines.residual_sampler import NetworkInputs, ResidualObjective, ResidualSampler, per_voxel
from dualflow.baselines.unet import unet_network
from dualflow.flows.objective import Objective, mean_over_scans
from dualflow.flows.rng import standard_noise

LATENTS = 4
"""Latent channels, at an eighth of the resolution."""
WARM_UP = (0.2, 0.6)
"""Shares of the training between which the weight of the divergence rises from 0 to 1 (Sonderby et al. 2016)."""
START = -2.0
"""Log standard deviation of the recognition network's latents before training: with more noise, the generator learns to
ignore the latents before they carry information."""
LOG_BOUND = 5.0
"""Largest absolute log of a latent's standard deviation."""
GROUPS = 1


class ConditionalVAE(ResidualSampler):
    """Conditional VAE with a map of latents h, whose prior depends on the source.

        h ~ N(m(inputs), d(inputs)^2),    e = g(h, inputs) + sigma n

    The prior and the recognition network q(h | e, inputs) are convolutional encoders; the generator g is the network of
    `unet`. The noise n is standard normal; its size sigma is learnt for each band, because a decoder without noise
    draws too small a spread.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, a multiple of eight; doubled at each of the two coarser scales.
    """

    learning_rate: ClassVar[float] = 3e-4

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 8
    ) -> None:
        super().__init__(shape, side_features, source_channels, width=width)
        self.prior = _encoder(self.input_channels, width)
        self.recognition = _encoder(BANDS + self.input_channels, width)
        self.generator = unet_network(LATENTS + self.input_channels, BANDS, width)
        self.decoder_noise = BandNoise()

    def objective(self) -> Objective:
        """Return the negative evidence lower bound."""
        return EvidenceBound(self)

    def generate(self, latent: Tensor, given: NetworkInputs) -> Tensor:
        """Return the mean of e given the latents."""
        fine = F.interpolate(latent, size=given.inputs.shape[2:], mode="trilinear")
        image: Tensor = self.generator(torch.cat([fine, given.inputs], dim=1))
        return image * given.inside

    def expect(self, given: NetworkInputs, generator: torch.Generator) -> Tensor:
        """Return the mean of e given the mean of the latents."""
        return self.generate(_gaussian(self.prior(given.inputs))[0], given)

    def draw(self, given: NetworkInputs, temperature: float, generator: torch.Generator) -> Tensor:
        """Draw latents from the prior, and e given the latents."""
        mean, log_deviation = _gaussian(self.prior(given.inputs))
        latent = mean + temperature * log_deviation.exp() * standard_noise(tuple(mean.shape), mean, generator)
        image = self.generate(latent, given)
        noise = standard_noise(tuple(image.shape), image, generator)
        return image + temperature * self.decoder_noise.log_sigma().exp() * noise * given.inside


class BandNoise(nn.Module):
    """Standard deviation of a decoder's Gaussian noise in each band, 1 before training.

    One step of Adam moves a parameter by about the learning rate; GAIN lets the logarithm move faster.
    """

    GAIN = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(BANDS, 1, 1, 1))

    def log_sigma(self) -> Tensor:
        """Return the logarithm `[8, 1, 1, 1]`."""
        return self.GAIN * self.raw


class EvidenceBound(ResidualObjective):
    """Negative evidence lower bound of a conditional VAE, nats per voxel of the standardised error.

    It is in training, with a weight that rises to 1:

        loss = -log p(e | h, inputs) + weight KL(q(h | e, inputs) | p(h | inputs)),    h ~ q
    """

    def terms(self, bands: Tensor, given: NetworkInputs, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return `loss`, the bound `elbo`, and its parts `reconstruction` and `divergence`."""
        model = self.sampler
        assert isinstance(model, ConditionalVAE)
        prior_mean, prior_log = _gaussian(model.prior(given.inputs))
        mean, log_deviation = _gaussian(model.recognition(torch.cat([bands, given.inputs], dim=1)), START)
        latent = mean + log_deviation.exp() * standard_noise(tuple(mean.shape), mean, generator)
        reconstruction = gaussian_loss(
            bands, model.generate(latent, given), model.decoder_noise.log_sigma(), given.inside
        )
        ratio = log_deviation - prior_log
        divergence = 0.5 * ((2 * ratio).exp() + ((mean - prior_mean) / prior_log.exp()).square() - 1) - ratio
        divergence = per_voxel(divergence, given.inside)
        begin, end = WARM_UP
        weight = min(max((self.progress - begin) / (end - begin), 0.0), 1.0) if self.training else 1.0
        parts = {"reconstruction": reconstruction.detach(), "divergence": divergence.detach()}
        return {"loss": reconstruction + weight * divergence, "elbo": -(reconstruction + divergence).detach(), **parts}


def gaussian_loss(bands: Tensor, mean: Tensor, log_sigma: Tensor, inside: Tensor) -> Tensor:
    """Return the negative log-likelihood of bands with a standard deviation for each band, in nats per voxel inside."""
    deviation = ((bands - mean) * (-log_sigma).exp()).square()
    return mean_over_scans(0.5 * deviation + log_sigma + 0.5 * log(2 * pi), inside)


def _gaussian(maps: Tensor, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return mean and log standard deviation of latents from the maps of an encoder; `start` is added to the latter."""
    mean, log_deviation = maps.float().chunk(2, dim=1)
    return mean, (log_deviation + start).clamp(-LOG_BOUND, LOG_BOUND)


def _encoder(in_channels: int, width: int) -> nn.Module:
    """Return an encoder to a quarter of its input's size, with two maps for each latent."""
    from monai.networks.nets.autoencoderkl import Encoder

    scales = 3
    encoder: nn.Module = Encoder(
        spatial_dims=3,
        in_channels=in_channels,
        channels=[width * 2**scale for scale in range(scales)],
        out_channels=2 * LATENTS,
        num_res_blocks=[1] * scales,
        norm_num_groups=GROUPS,
        norm_eps=1e-6,
        attention_levels=[False] * scales,
        with_nonlocal_attn=False,
    )
    return encoder
