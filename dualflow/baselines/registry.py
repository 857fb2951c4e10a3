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
        text: what it is, in a sentence.
        arguments: keyword arguments of its constructor.
    """

    kind: type[Baseline]
    text: str
    arguments: Mapping[str, Any] = MappingProxyType({})

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
    "mean_image": BaselineRow(MeanImage, "The mean of the training targets in each voxel."),
    "voxelwise_linear": BaselineRow(
        LocalLinearBaseline,
        "Independent linear regression at each voxel, on the source intensities at that voxel and the side values.",
        # Cross-fitting chooses the ridge, which is close to least squares with many scans.
        {"design": IntensityFeatures(), "ridges": (1e-6, 0.1, 1.0, 10.0), "sigmas": (0.0,)},
    ),
    "local_linear": BaselineRow(
        LocalLinearBaseline,
        "Local linear regression on tissue maps of the source and side values: the `local_linear` mean of a flow.",
    ),
    "local_linear_spread": BaselineRow(
        ClosedFormDensity,
        "Local linear regression with a spread map, and errors that are correlated within and between regions.",
    ),
    "local_linear_person_scale": BaselineRow(
        ClosedFormDensity,
        "The `local_linear_spread` density, scaled per person by side information and tissue fractions.",
        {"person_scale": True},
    ),
    "local_linear_mixture": BaselineRow(
        ClosedFormDensity,
        "The `local_linear_person_scale` density with a mixture of up to three laws of the region means.",
        {"person_scale": True, "components": 3},
    ),
    "stacked": BaselineRow(StackedBaseline, "The `stacked` mean of the default flow, without the flow."),
    "stacked_mixture": BaselineRow(
        ClosedFormDensity,
        "The law of `local_linear_mixture` around the `stacked` mean.",
        {"mean": StackedBaseline, "person_scale": True, "components": 3},
    ),
    "stacked_source_scale": BaselineRow(
        ClosedFormDensity,
        "The `stacked_mixture` density, scaled in each voxel by how far the source lies from the usual one.",
        {"mean": StackedBaseline, "person_scale": True, "components": 3, "voxel_scale": True},
    ),
    "unet": BaselineRow(UNet, "nnU-Net's network (Isensee et al. 2021) as a correction of the `stacked` mean."),
    "unet_half": BaselineRow(
        HalfUNet, "The `unet` on averages of 2x2x2 voxels: a smooth correction, interpolated from half the resolution."
    ),
    "unet_heteroscedastic": BaselineRow(
        HeteroscedasticUNet,
        "The `unet` with a second map, a factor on the spread of the errors that `local_linear_spread` draws.",
    ),
    "pix2pix": BaselineRow(
        Pix2Pix, "The `unet` as the generator of a conditional adversarial network (Isola et al. 2017), without noise."
    ),
    "cvae": BaselineRow(ConditionalVAE, "Conditional variational autoencoder of the errors of the `stacked` mean."),
    "rectified_flow": BaselineRow(
        RectifiedFlow,
        "Rectified flow of the errors of the `stacked` mean: a differential equation from noise to an error.",
    ),
    "latent_diffusion": BaselineRow(
        LatentDiffusion, "Latent diffusion of the errors of the `stacked` mean, conditioned by a ControlNet."
    ),
}
