"""Whether a flow ever draws something that is not a number: many samples, over temperatures and over sources."""

from __future__ import annotations

from itertools import product

import pandas as pd
import torch
from torch import Tensor

from dualflow.data.dataset import PairDataset
from dualflow.evaluation.likelihood import AT_ONCE, another_person, in_brain_of
from dualflow.flows.model import DualFlow
from dualflow.progress import track

TEMPERATURES = (0.0, 0.5, 0.8, 1.0)
SOURCES = ("own", "other")
COLUMNS = ("temperature", "source", "samples", "nonfinite_voxels", "largest")


@torch.no_grad()
def stress(model: DualFlow, people: PairDataset, samples: int, seed: int, label: str = "stress") -> pd.DataFrame:
    """Draw exactly `samples` samples over TEMPERATURES, SOURCES and people, and count what is not finite.

    Sample k takes setting k mod S of S and scan k div S, and round again. `other` is somebody else's anatomy in the
    person's own brain mask, left out where there is nobody else. At temperature 0 a scan that comes round again gives
    the same image.

    Returns:
        One row per setting, columns COLUMNS: over the whole grid, how many voxels of its samples were NaN or
        infinite, and the largest absolute value of the others, in the target's unit.
    """
    generator = torch.Generator().manual_seed(seed)
    alone = another_person(people.scans, 0) is None
    settings = list(product(TEMPERATURES, SOURCES[:1] if alone else SOURCES))
    rows = []
    for place, (temperature, kind) in enumerate(track(settings, label)):
        scans = [number // len(settings) % len(people) for number in range(place, samples, len(settings))]
        nonfinite, largest = 0, 0.0
        for start in range(0, len(scans), AT_ONCE):
            some = scans[start : start + AT_ONCE]
            source = torch.stack([_source(people, index, kind) for index in some])
            side = torch.stack([people[index]["side"] for index in some])
            drawn = model.sample(source, side, n=1, temperature=temperature, generator=generator)
            finite = drawn.isfinite()
            nonfinite += int((~finite).sum())
            largest = max(largest, float(drawn.abs().where(finite, 0.0).max()))
        rows.append((temperature, kind, len(scans), nonfinite, largest))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _source(people: PairDataset, index: int, kind: str) -> Tensor:
    item = people[index]
    source: Tensor = item["source"]
    other = None if kind == "own" else another_person(people.scans, index)
    return source if other is None else in_brain_of(item, people[other])
