"""Pre-training of an encoder source: first it learns to predict the target, then the flow reads its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.mean_models import masked_l1
from dualflow.flows.model import DualFlow
from dualflow.flows.network import ZeroConv
from dualflow.flows.squeeze import Squeeze


class SourcePretraining(nn.Module):
    """A linear head on the source's finest features, trained by L1: the encoder's start (Lugmayr et al. 2020).

    What the head adds is added to the mean model's image, so that with a mean the features learn what that has left.
    The flow's source and side tokens are trained in place; the head is thrown away.

    Args:
        flow: whose source is pre-trained.
    """

    def __init__(self, flow: DualFlow) -> None:
        super().__init__()
        self.flow, self.squeeze = flow, Squeeze()
        self.head = ZeroConv(flow.source.channels[0], 8 * flow.target_channels, 1)

    def forward(
        self,
        target: Tensor,
        source: Tensor,
        side: Tensor | None = None,
        mask: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss; without a mask every voxel counts."""
        inside = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
        return {"loss": masked_l1(self._image(source, side, mean), target, inside)}

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the predicted target `[N, C, D, H, W]`."""
        return self._image(source, side, None)

    def _image(self, source: Tensor, side: Tensor | None, mean: Tensor | None) -> Tensor:
        condition = self.flow.condition(source, self.flow.known_side(source, side), mean)
        return condition.mean + self.squeeze.inverse(self.head(condition.features[0]))[0]
