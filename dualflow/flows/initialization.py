"""Data-dependent initialisation of a flow, once before training and before DistributedDataParallel wraps it."""

from __future__ import annotations

from math import prod

import torch

from dualflow.flows.dequantization import prepare_target
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.rng import standard_noise
from dualflow.flows.side_information import side_values
from dualflow.flows.voxel_features import without_detail

INITIALISATION_VOXELS = 64 * 48 * 56 * 48
"""Voxels that pass through the flow at once: 64 scans at 4 mm, 8 at 2 mm.

Memory then does not grow with the grid, and the moments hardly change beyond this many voxels."""


@torch.no_grad()
def initialize_flow(flow: DualFlow, batch: Batch) -> None:
    """Set the actnorms of flow and source in place from the first scans, as many as pass through the flow at once."""
    target = prepare_target(batch.target, batch.mask, flow.spec, training=True)
    side = side_values(batch.side, batch.source, flow.side_features)
    count = max(1, INITIALISATION_VOXELS // prod(flow.shape))
    if flow.spec.has_source_density:
        first = without_detail(batch.source[:count], flow.source_channels)
        flow.source.initialize(first + flow.spec.source_noise * standard_noise(tuple(first.shape), first))
    rows = slice(count)
    given = (None if image is None else image[rows] for image in (batch.mean, batch.spread))
    condition = flow.condition(batch.source[rows], side[rows], *given)
    flow.flow.initialize(flow.residual(target[rows], condition)[0], condition.maps)
