"""BASELINES: the baselines by their name in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.cvae import ConditionalVAE
from dualflow.baselines.latent_diffusion import LatentDiffusion
from dualflow.baselines.linear_models import LocalLinearBaseline, MeanImage, StackedBaseline
from dualflow.baselines.pix2pix import Pix2Pix
from dualflow.baselines.rectified_flow import RectifiedFlow
from dualflow.baselines.residual_density import ClosedFormDensity
from dualflow.baselines.unet import HalfUNet, HeteroscedasticUNet, UNet
from dualflow.flows.voxel_features import IntensityFeatures


class BaselineRow(NamedTuple):
    """A baseline: a class, and the arguments of its constructor that the row sets.

    Attributes:
        kind: the class.
        arguments: keyword arguments of its constructor.
        text: what it is, in one or two sentences; empty for the first paragraph of the class's docstring.
    """

    kind: type[Baseline]
    arguments: Mapping[str, Any] = MappingProxyType({})
    text: str = ""

    def __call__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, **options: int
    ) -> Baseline:
        """Return the untrained baseline.

        Args:
            shape: the grid, D, H, W.
            side_features: number of side columns.
            source_channels: channels of the source.
            options: further arguments of the class, which a study sets.
        """
        return self.kind(shape, side_features, source_channels, **self.arguments, **options)


BASELINES: dict[str, BaselineRow] = {
    "mean_image": BaselineRow(MeanImage),
    "voxelwise_linear": BaselineRow(
        LocalLinearBaseline,
        # Cross-fitting chooses the ridge, which is close to least squares with many scans.
        {"design": IntensityFeatures(), "ridges": (1e-6, 0.1, 1.0, 10.0), "sigmas": (0.0,)},
        "Independent linear regression at each voxel, on the source intensities at that voxel and the side values.",
    ),
    "local_linear": BaselineRow(LocalLinearBaseline),
    "local_linear_spread": BaselineRow(
        ClosedFormDensity,
        text="Local linear regression with a spread map, and errors that are correlated within and between regions.",
    ),
    "local_linear_person_scale": BaselineRow(
        ClosedFormDensity,
        {"person_scale": True},
        "The `local_linear_spread` density, scaled per person by side information and tissue fractions.",
    ),
    "local_linear_mixture": BaselineRow(
        ClosedFormDensity,
        {"person_scale": True, "components": 3},
        "The `local_linear_person_scale` density with a mixture of up to three laws of the region means.",
    ),
    "stacked": BaselineRow(StackedBaseline),
    "stacked_mixture": BaselineRow(
        ClosedFormDensity,
        {"mean": StackedBaseline, "person_scale": True, "components": 3},
        "The same law around the `stacked` mean.",
    ),
    "stacked_source_scale": BaselineRow(
        ClosedFormDensity,
        {"mean": StackedBaseline, "person_scale": True, "components": 3, "voxel_scale": True},
        "The `stacked_mixture` density, scaled in each voxel by how far the source lies from the usual one.",
    ),
    "unet": BaselineRow(UNet),
    "unet_half": BaselineRow(HalfUNet),
    "unet_heteroscedastic": BaselineRow(HeteroscedasticUNet),
    "pix2pix": BaselineRow(Pix2Pix),
    "cvae": BaselineRow(ConditionalVAE),
    "rectified_flow": BaselineRow(RectifiedFlow),
    "latent_diffusion": BaselineRow(LatentDiffusion),
}
