"""Stress test of a flow: many samples over temperatures and sources, checked for non-finite voxels."""

from __future__ import annotations

from itertools import product

import pandas as pd
import torch
from torch import Tensor

from dualflow.data.dataset import PairDataset
from dualflow.evaluation.likelihood import BATCH, another_subject, exchange_source
from dualflow.flows.model import DualFlow
from dualflow.progress import track
from dualflow.training.device import device_of

TEMPERATURES = (0.0, 0.5, 0.8, 1.0)
SOURCES = ("own", "other")
COLUMNS = ("temperature", "source", "samples", "nonfinite_voxels", "largest")


@torch.no_grad()
def stress(model: DualFlow, dataset: PairDataset, samples: int, seed: int, label: str = "stress") -> pd.DataFrame:
    """Draw `samples` samples over TEMPERATURES, SOURCES and scans, and count non-finite voxels.

    Sample k takes setting k mod S of S settings and scan k div S, cyclically. The source `other` is another subject's
    anatomy in the scan's own brain mask; it is omitted if there is no other subject. At temperature 0, repeated scans
    give identical images.

    Returns:
        One row per setting, columns COLUMNS: number of NaN or infinite voxels over the whole grid, and largest
        absolute finite value in the target's unit.
    """
    generator, device = torch.Generator().manual_seed(seed), device_of(model)
    single_subject = another_subject(dataset.scans, 0) is None
    settings = list(product(TEMPERATURES, SOURCES[:1] if single_subject else SOURCES))
    rows = []
    for offset, (temperature, kind) in enumerate(track(settings, label)):
        scans = [number // len(settings) % len(dataset) for number in range(offset, samples, len(settings))]
        nonfinite, largest = 0, 0.0
        for start in range(0, len(scans), BATCH):
            batch = scans[start : start + BATCH]
            source = torch.stack([_source(dataset, index, kind) for index in batch]).to(device)
            side = torch.stack([dataset[index]["side"] for index in batch]).to(device)
            volumes = model.sample(source, side, n=1, temperature=temperature, generator=generator)
            finite = volumes.isfinite()
            nonfinite += int((~finite).sum())
            largest = max(largest, float(volumes.abs().where(finite, 0.0).max()))
        rows.append((temperature, kind, len(scans), nonfinite, largest))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _source(dataset: PairDataset, index: int, kind: str) -> Tensor:
    item = dataset[index]
    source: Tensor = item["source"]
    other_index = None if kind == "own" else another_subject(dataset.scans, index)
    return source if other_index is None else exchange_source(item, dataset[other_index])
