"""Closed-form fit of the correlation that a flow removes from its residuals."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dualflow.baselines.grid_kernel import GridKernel
from dualflow.baselines.residual_law import KERNEL_PEOPLE
from dualflow.data.dataset import PairDataset, collate
from dualflow.flows.dequantization import prepare_target
from dualflow.flows.model import DualFlow
from dualflow.flows.regression_scans import shown
from dualflow.flows.rng import EVALUATION_SEED
from dualflow.flows.voxel_features import without_detail
from dualflow.training.fit_spread import mean_of


@torch.no_grad()
def fit_whitening(flow: DualFlow, train: PairDataset) -> None:
    """Fit the flow's whitening in place to the residuals of training pairs, in units of their spread.

    Args:
        flow: a flow with a fitted mean and spread, on the CPU.
        train: training pairs, with cross-fitted means and spreads if mean and spread have them.
    """
    if flow.whitening is None:
        return
    kernel = GridKernel(train.shape)
    kernel.fit(_fields(flow, train))
    flow.whitening.set_correlation(kernel.weights)


def _fields(flow: DualFlow, train: PairDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield residuals with the noise of training, in units of the spread, `[D, H, W]`, and what their targets show."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    for index in range(0, len(train), max(len(train) // KERNEL_PEOPLE, 1)):
        item = collate([train[index]])
        target = prepare_target(item["target"], item["mask"], flow.spec, generator, training=True)
        images = without_detail(item["source"], flow.source_channels)
        spread = item["spread"] if "spread" in item else flow.spread(item["mask"], images, item["side"])
        yield ((target - mean_of(flow, train[index])) / spread)[0, 0], shown(train[index])[0]
