"""BASELINES: the baselines by their name in a configuration."""

from __future__ import annotations

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.linear_models import LocalLinearBaseline, MeanImage, StackedBaseline, VoxelwiseLinear
from dualflow.baselines.residual_density import (
    MixtureDensity,
    PersonScaleDensity,
    SpreadDensity,
    StackedMixtureDensity,
)
from dualflow.baselines.unet import HeteroscedasticUNet, UNet

BASELINES: dict[str, type[Baseline]] = {
    "mean_image": MeanImage,
    "voxelwise_linear": VoxelwiseLinear,
    "local_linear": LocalLinearBaseline,
    "local_linear_spread": SpreadDensity,
    "local_linear_person_scale": PersonScaleDensity,
    "local_linear_mixture": MixtureDensity,
    "stacked": StackedBaseline,
    "stacked_mixture": StackedMixtureDensity,
    "unet": UNet,
    "unet_heteroscedastic": HeteroscedasticUNet,
}
