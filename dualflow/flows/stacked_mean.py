"""StackedMean: a local linear regression, corrected by a richer one as far as cross-fitting supports it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.coefficient_posterior import CoefficientPosterior
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.person_gain import PersonGain
from dualflow.flows.rich_features import RichFeatures
from dualflow.flows.voxel_features import foreground, without_detail


class StackedMean(nn.Module):
    """The conditional mean (plain + w (rich - plain)) g.

    `plain` is LocalLinear on tissue features; `rich` has harmonised sources, contrast and abnormality, and is fitted
    together with each voxel's mirror image. The weight w in 0..1 and the gain g of the person are chosen by
    cross-fitting: with w = 0 and g = 1 it is the local linear regression. `fit_stacked_mean` fits it in closed form.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    weight: Tensor

    def __init__(self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.plain = LocalLinear(shape, side_features, source_channels)
        self.rich = LocalLinear(shape, side_features, source_channels, design=RichFeatures(shape, source_channels))
        self.gain = PersonGain(shape, side_features, source_channels)
        self.posterior = CoefficientPosterior(shape, self.rich.count)
        self.register_buffer("weight", torch.zeros(()))

    @property
    def features(self) -> RichFeatures:
        """The features of the rich regression."""
        assert isinstance(self.rich.design, RichFeatures)
        return self.rich.design

    @torch.no_grad()
    def posterior_means(
        self,
        source: Tensor,
        side: Tensor | None = None,
        draws: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw conditional means from the posterior of the coefficients, `[draws, N, 1, D, H, W]`.

        A draw is mean + w g f . delta, where f are the features of the rich regression and delta is one draw of
        `CoefficientPosterior`: the same coefficients for all N people, as multiple imputation needs them. The plain
        regression, the weight, the gain and the choices are taken as known. Two calls with generators in equal states
        draw equal coefficients.
        """
        mean, features = self(source, side), self.rich.features(source, side)
        factor = self.weight * self._gains(source, side) * foreground(source)
        images = [
            mean + factor * (features * self.posterior.draw(generator)).sum(dim=1, keepdim=True) for _ in range(draws)
        ]
        return torch.stack(images)

    def forward(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the conditional mean `[N, 1, D, H, W]`, in the target's unit."""
        image: Tensor = torch.lerp(self.plain(source, side), self.rich(source, side), self.weight)
        return image * self._gains(source, side)

    def _gains(self, source: Tensor, side: Tensor | None) -> Tensor:
        """Return the gain of each person, `[N, 1, 1, 1, 1]`."""
        gain: Tensor = self.gain(without_detail(source, self.features.channels), self.plain.complete(source, side))
        return gain[:, None, None, None, None]
