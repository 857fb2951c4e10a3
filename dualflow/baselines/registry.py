"""BASELINES: the baselines by their name in a configuration."""

from __future__ import annotations

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.cvae import ConditionalVAE
from dualflow.baselines.latent_diffusion import LatentDiffusion
from dualflow.baselines.linear_models import LocalLinearBaseline, MeanImage, StackedBaseline, VoxelwiseLinear
from dualflow.baselines.pix2pix import Pix2Pix
from dualflow.baselines.rectified_flow import RectifiedFlow
from dualflow.baselines.residual_density import (
    MixtureDensity,
    PersonScaleDensity,
    SourceScaleDensity,
    SpreadDensity,
    StackedMixtureDensity,
)
from dualflow.baselines.unet import HalfUNet, HeteroscedasticUNet, UNet

BASELINES: dict[str, type[Baseline]] = {
    "mean_image": MeanImage,
    "voxelwise_linear": VoxelwiseLinear,
    "local_linear": LocalLinearBaseline,
    "local_linear_spread": SpreadDensity,
    "local_linear_person_scale": PersonScaleDensity,
    "local_linear_mixture": MixtureDensity,
    "stacked": StackedBaseline,
    "stacked_mixture": StackedMixtureDensity,
    "stacked_source_scale": SourceScaleDensity,
    "unet": UNet,
    "unet_half": HalfUNet,
    "unet_heteroscedastic": HeteroscedasticUNet,
    "pix2pix": Pix2Pix,
    "cvae": ConditionalVAE,
    "rectified_flow": RectifiedFlow,
    "latent_diffusion": LatentDiffusion,
}
