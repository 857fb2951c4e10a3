"""People whose errors have a known law: a size that follows age, and two subtypes of patients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualflow.flows.voxel_features import blur

SHAPE = (12, 10, 10)
PATTERN = torch.tensor([0.2, 0.2, -0.2, -0.2])
"""Effect of one subtype on the four regions; the other subtype's is the opposite."""
REGION_SD, VOXEL_SD = 0.04, 0.1


def region_labels() -> Tensor:
    """Return four slabs of different thickness, with a margin outside all regions."""
    labels = torch.zeros(SHAPE, dtype=torch.int32)
    for region, (start, stop) in enumerate(((1, 4), (4, 6), (6, 8), (8, 11)), 1):
        labels[start:stop, 1:-1, 1:-1] = region
    return labels


def region_people(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs whose target is 1 + source + e^(age / 2) (effect of the person's regions + smooth noise).

    Side values are age (standardised) and whether the person is a patient. A patient has one of two subtypes, which
    neither source nor side values show.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = region_labels()
    mask = (labels > 0)[None]
    people = []
    for index in range(count):
        source = (0.5 + blur(torch.randn(1, *SHAPE, generator=generator), 1.0)).clamp(0.05, 1) * mask
        age, draws = torch.randn(1, generator=generator), torch.rand(2, generator=generator)
        patient, subtype = float(draws[0] < 0.5), float(draws[1] < 0.5)
        effects = REGION_SD * torch.randn(4, generator=generator) + patient * (2 * subtype - 1) * PATTERN
        noise = blur(torch.randn(1, *SHAPE, generator=generator), 0.8)
        error = torch.cat([torch.zeros(1), effects])[labels.long()] + VOXEL_SD * noise / noise[mask].std()
        side = torch.cat([age, torch.tensor([patient])])
        target = (1 + source + (0.5 * age).exp() * error) * mask
        people.append({"source": source, "target": target, "side": side, "mask": mask, "scan": f"sub-{index:03d}"})
    return people
