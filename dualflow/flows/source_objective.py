"""Pre-training of an encoder source: it learns to predict the target before the flow reads its features."""

from __future__ import annotations

from torch import Tensor

from dualflow.flows.model import DualFlow
from dualflow.flows.network import ZeroConv
from dualflow.flows.objective import Batch, Objective, masked_l1
from dualflow.flows.squeeze import Squeeze


class SourceObjective(Objective):
    """L1 of a linear head on the source's finest features, to pre-train the encoder (Lugmayr et al. 2020).

    The head's output is added to the mean model's image: with a mean, the features learn its residual. The flow's
    source and side tokens are trained in place; the head is discarded.

    Args:
        flow: its source is pre-trained.
    """

    def __init__(self, flow: DualFlow) -> None:
        super().__init__()
        self.flow, self.squeeze = flow, Squeeze()
        self.head = ZeroConv(flow.source.channels[0], 8 * flow.target_channels, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `l1`, which are the same number."""
        error = masked_l1(self._image(batch.source, batch.side, batch.mean, batch.spread), batch.target, batch.mask)
        return {"loss": error, "l1": error.detach()}

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the predicted target `[N, C, D, H, W]`."""
        return self._image(source, side)

    def _image(
        self, source: Tensor, side: Tensor | None, mean: Tensor | None = None, spread: Tensor | None = None
    ) -> Tensor:
        condition = self.flow.condition(source, side, mean, spread)
        return condition.mean + self.squeeze.inverse(self.head(condition.features[0]))[0]
