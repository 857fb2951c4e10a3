"""BASELINES: the baselines by their name in a configuration."""

from __future__ import annotations

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.linear_models import LocalLinearBaseline, MeanImage, VoxelwiseLinear
from dualflow.baselines.unet import UNet

BASELINES: dict[str, type[Baseline]] = {
    "mean_image": MeanImage,
    "voxelwise_linear": VoxelwiseLinear,
    "local_linear": LocalLinearBaseline,
    "unet": UNet,
}
