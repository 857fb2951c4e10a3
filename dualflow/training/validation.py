"""Validation of an objective while it trains."""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.data.dataset import PairDataset, collate
from dualflow.flows.objective import Batch, Objective
from dualflow.flows.regression_scans import shown
from dualflow.training.device import device_of
from dualflow.training.distributed import SINGLE_PROCESS, ProcessGroup


@torch.no_grad()
def validate(
    objective: Objective, pairs: PairDataset, batch_size: int, group: ProcessGroup = SINGLE_PROCESS
) -> dict[str, float]:
    """Return means over the pairs, in float32: loss terms, MAE, Pearson r, and the objective's diagnostics.

    MAE and r are of the voxels that a target shows.

    In evaluation an objective adds no noise to its targets, so validations are comparable. Round trips are measured on
    the first batch alone. Several processes share the batches and get the same means.
    """
    device = device_of(objective)
    objective.eval()
    sums: dict[str, float] = {}
    for start in range(group.rank * batch_size, len(pairs), group.world_size * batch_size):
        scans = [pairs[index] for index in range(start, min(start + batch_size, len(pairs)))]
        items, seen = collate(scans), torch.stack([shown(scan) for scan in scans]).to(device)
        target, source, side, mask = (items[name].to(device) for name in ("target", "source", "side", "mask"))
        batch = Batch(target, source, side, mask)
        terms = {name: float(value) for name, value in objective(batch).items()}
        image = objective.point_estimate(source, side).float()
        terms |= objective.diagnostics(batch, round_trip=start == 0)
        # Voxels that a target does not show hold the mean of other people, which a mean image would predict well.
        terms["mae"] = float(((image - target).abs() * seen).sum() / seen.sum())
        correlations = [_pearson(i[m], t[m]) for i, t, m in zip(image, target, seen, strict=True)]
        terms["pearson_r"] = sum(correlations) / len(correlations)
        for name, value in terms.items():
            share = 1.0 if name.endswith("round_trip") else len(target) / len(pairs)
            sums[name] = sums.get(name, 0.0) + share * value
    return group.sums(sums)


def _pearson(left: Tensor, right: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.flatten().double(), right.flatten().double()]))[0, 1])
