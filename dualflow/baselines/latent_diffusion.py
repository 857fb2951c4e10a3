"""LatentDiffusion: diffusion in an autoencoder's latents, steered by a ControlNet (Rombach 2022, Zhang 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dualflow.baselines.correction import BANDS
from dualflow.baselines.cvae import BandNoise, gaussian_loss
from dualflow.baselines.residual_sampler import NetworkInputs, ResidualObjective, ResidualSampler, per_voxel
from dualflow.flows.objective import Objective, mean_over_scans
from dualflow.flows.regression_scans import Pairs
from dualflow.flows.rng import standard_noise, uniform_noise

LATENTS = 4
"""Latent channels, at a quarter of the resolution."""
DIVERGENCE = 0.01
"""Weight of the divergence of the latents from standard normal ones."""
TIMES = 1000
"""Times of the diffusion."""
STEPS = 40
"""DDIM steps of a sample; they shrink normal values by 5 %, and 20 steps by 9 %."""
DRAWS = 4
"""Draws of noise and time of a validation, and of noise for the mean."""
SCALING_PEOPLE = 64
"""Training people from whose latents the scale is taken."""
GROUPS, HEAD = 1, 16


class LatentDiffusion(ResidualSampler):
    """Latent diffusion of e with a ControlNet.

    A first stage of training fits the AutoencoderKL of e. In the second it is frozen, and the diffusion network learns
    with a linear schedule (Ho et al. 2020) to predict `v = a z - b h` (Salimans and Ho 2022) from noisy latents
    `a h + b z`. The condition enters through the ControlNet alone. Samples take DDIM steps (Song et al. 2021), and the
    decoder's Gaussian noise of a learnt size for each band is added to them, because a decoded image has less detail
    than an error.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels of the autoencoder at half resolution, a multiple of eight; the networks of the latents have
            twice and four times as many.
    """

    learning_rate: ClassVar[float] = 1e-4

    latent_scale: Tensor

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 8
    ) -> None:
        super().__init__(shape, side_features, source_channels, width=width)
        from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet

        self.autoencoder = AutoencoderKL(
            spatial_dims=3,
            in_channels=BANDS,
            out_channels=BANDS,
            channels=(width, 2 * width),
            num_res_blocks=1,
            attention_levels=(False, False),
            latent_channels=LATENTS,
            norm_num_groups=GROUPS,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        sizes: dict[str, Any] = {
            "spatial_dims": 3,
            "in_channels": LATENTS,
            "channels": (2 * width, 4 * width),
            "num_res_blocks": 1,
            "attention_levels": (False, False),
            "norm_num_groups": GROUPS,
            "num_head_channels": HEAD,
        }
        self.network = DiffusionModelUNet(out_channels=LATENTS, **sizes)
        self.control = ControlNet(
            conditioning_embedding_in_channels=self.input_channels,
            conditioning_embedding_num_channels=(width, 2 * width),
            **sizes,
        )
        self.decoder_noise = BandNoise()
        self.register_buffer("latent_scale", torch.ones(LATENTS, 1, 1, 1))

    def first_stage(self) -> Objective:
        """Return the loss of the autoencoder."""
        return AutoencoderLoss(self)

    @torch.no_grad()
    def finish_first_stage(self, pairs: Pairs, images: Sequence[Tensor]) -> None:
        """Scale the latents of training people to variance 1."""
        device = self.latent_scale.device
        squares, count = torch.zeros(LATENTS, device=device), torch.zeros((), device=device)
        for index in range(min(len(pairs), SCALING_PEOPLE)):
            pair = pairs[index]
            source, side, target, mask = (pair[name][None].to(device) for name in ("source", "side", "target", "mask"))
            image = images[index][None].to(device)
            _, given = self.given(source, side, image)
            latent, _ = self.autoencoder.encode(self.standardised(torch.where(mask, target - image, 0.0)))
            inside = latent_inside(given)
            squares += (latent.square() * inside).sum(dim=(0, 2, 3, 4))
            count += inside.sum()
        self.latent_scale.copy_((squares / count).clamp_min(1e-12).rsqrt()[:, None, None, None])

    def objective(self) -> Objective:
        """Return the loss of the diffusion; the autoencoder is no longer trained."""
        return DiffusionLoss(self)

    def velocity(self, state: Tensor, time: Tensor, given: NetworkInputs) -> Tensor:
        """Return the network's v for noisy latents at times `[N]`, 0 to TIMES - 1."""
        down, middle = self.control(x=state, timesteps=time, controlnet_cond=given.inputs)
        out: Tensor = self.network(
            state, time, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        return out * latent_inside(given)

    def decode(self, latent: Tensor, given: NetworkInputs) -> Tensor:
        """Return the mean of e given scaled latents."""
        image: Tensor = self.autoencoder.decode(latent / self.latent_scale)
        return image * given.inside

    def noise(self, given: NetworkInputs, rows: int, generator: torch.Generator) -> Tensor:
        """Draw standard normal latents, 0 outside the brain."""
        inside = latent_inside(given)
        return standard_noise((rows, LATENTS, *inside.shape[2:]), inside, generator) * inside

    def expect(self, given: NetworkInputs, generator: torch.Generator) -> Tensor:
        """Decode the mean of the latents, which is -v at the last time; over a few draws of noise."""
        total = torch.zeros(())
        for _ in range(DRAWS):
            noise = self.noise(given, 1, generator).expand(len(given.inputs), -1, -1, -1, -1)
            total = total.to(noise) - self.velocity(noise, noise.new_full((len(noise),), TIMES - 1), given)
        return self.decode(total / DRAWS, given)

    def draw(self, given: NetworkInputs, temperature: float, generator: torch.Generator) -> Tensor:
        """Denoise latents by DDIM steps, decode them, and add the decoder's noise."""
        state = temperature * self.noise(given, len(given.inputs), generator)
        sampling = _scheduler("DDIMScheduler")
        sampling.set_timesteps(STEPS)
        # The scheduler's list of times ends at 0, and its step goes back TIMES / STEPS: these times fit to the step.
        for time in range(TIMES - 1, -1, -(TIMES // STEPS)):
            velocity = self.velocity(state, state.new_full((len(state),), time), given)
            state, _ = sampling.step(velocity, time, state)
        image = self.decode(state, given)
        noise = standard_noise(tuple(image.shape), image, generator)
        return image + temperature * self.decoder_noise.log_sigma().exp() * noise * given.inside


class AutoencoderLoss(ResidualObjective):
    """Gaussian negative log-likelihood of decoded errors, plus DIVERGENCE times the divergence of the latents."""

    def terms(self, bands: Tensor, given: NetworkInputs, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return `loss`, `reconstruction` and `divergence`, nats per voxel."""
        model = self.sampler
        assert isinstance(model, LatentDiffusion)
        mean, deviation = (part.float() for part in model.autoencoder.encode(bands))
        latent = mean + deviation * standard_noise(tuple(mean.shape), mean, generator)
        image = model.autoencoder.decode(latent) * given.inside
        reconstruction = gaussian_loss(bands, image, model.decoder_noise.log_sigma(), given.inside)
        divergence = 0.5 * (mean.square() + deviation.square() - 1) - deviation.clamp_min(1e-6).log()
        divergence = per_voxel(divergence * latent_inside(given), given.inside)
        loss = reconstruction + DIVERGENCE * divergence
        return {"loss": loss, "reconstruction": reconstruction.detach(), "divergence": divergence.detach()}

    def sample(self, source: Tensor, side: Tensor | None, generator: torch.Generator) -> None:
        """Return None: the diffusion is not trained yet."""


class DiffusionLoss(ResidualObjective):
    """Mean squared error of v at uniformly random times, for latents of the frozen autoencoder.

    Args:
        model: its autoencoder no longer takes gradients.
    """

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__(model)
        model.autoencoder.requires_grad_(False)
        model.decoder_noise.requires_grad_(False)

    def terms(self, bands: Tensor, given: NetworkInputs, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return `loss`; in validation the mean over a few draws with evenly spread times."""
        model = self.sampler
        assert isinstance(model, LatentDiffusion)
        inside = latent_inside(given)
        with torch.no_grad():
            latent = model.autoencoder.encode(bands)[0].float() * model.latent_scale * inside
        losses, noising = [], _scheduler("DDPMScheduler")
        for draw in range(1 if generator is None else DRAWS):
            noise = standard_noise(tuple(latent.shape), latent, generator) * inside
            share = uniform_noise(latent[:, 0, 0, 0, 0], generator)
            time = (TIMES * (share if generator is None else (share + draw) / DRAWS)).long()
            state = noising.add_noise(latent, noise, time)
            target = noising.get_velocity(latent, noise, time)
            losses.append(mean_over_scans((model.velocity(state, time, given) - target).square(), inside))
        return {"loss": torch.stack(losses).mean()}


def latent_inside(given: NetworkInputs) -> Tensor:
    """Return 1 in latents whose block touches the brain, else 0."""
    return F.max_pool3d(given.inside, 2)


@cache
def _scheduler(name: str) -> Any:
    """Return MONAI's scheduler of a name; it is no part of a model."""
    from monai.networks import schedulers

    return getattr(schedulers, name)(num_train_timesteps=TIMES, prediction_type="v_prediction", clip_sample=False)
