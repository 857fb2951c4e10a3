"""The probe of what latents tell about side information."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualflow.data.dataset import PairDataset
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import preset
from dualflow.training.side_probe import MIN_SCANS, explained_share, side_probe

SHAPE = (16, 16, 16)


def test_a_share_is_held_out():
    """Noise explains nothing, although there are half as many features as people; what is told counts per column."""
    rng = np.random.default_rng(0)
    sides, folds = rng.normal(size=(60, 2)), np.arange(60) % 5
    assert explained_share(rng.normal(size=(60, 30)), sides, folds) == pytest.approx(0, abs=0.1)
    told = np.column_stack([sides[:, 0], rng.normal(size=(60, 3))])
    assert explained_share(told, sides, folds) == pytest.approx(0.5, abs=0.1)
    sides[: 60 - MIN_SCANS + 1, 1] = np.nan
    assert explained_share(told, sides, folds) == pytest.approx(1, abs=0.05)
    assert explained_share(told, np.full((60, 1), 2.0), folds) is None


def test_visits_of_a_person_do_not_choose_the_ridge():
    """Five visits of 40 people tell of their age what one visit of each does."""
    rng = np.random.default_rng(0)
    ages = rng.normal(size=40)
    people = rng.normal(size=(40, 16)) + 0.7 * ages[:, None] * (np.arange(16) < 4)
    subjects = np.repeat(np.arange(40), 5)
    visits = people[subjects] + 0.1 * rng.normal(size=(200, 16))
    once = explained_share(people, ages[:, None], np.arange(40) % 4)
    assert explained_share(visits, ages[subjects, None], subjects % 4) == pytest.approx(once, abs=0.1)


@pytest.mark.parametrize("told", [0.0, 0.5])
def test_latents_tell_what_the_size_of_the_residual_tells(told):
    """A finer level tells a side value that changes the size of the target's details, and else nothing."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[:, 2:-2, 2:-2, 2:-2] = True
    items = []
    for index in range(40):
        side = torch.tensor([float(index % 2) * 2 - 1])
        target = torch.exp(told * side) * torch.randn(1, *SHAPE, generator=generator) * mask
        source = mask * (0.5 + 0.1 * torch.rand(1, *SHAPE, generator=generator))
        items.append({"target": target, "source": source, "side": side, "mask": mask, "scan": f"sub-{index}"})
    torch.manual_seed(0)
    flow = DualFlow(preset("dual_glow", levels=2, steps=(1, 1), hidden=(8, 8)), shape=SHAPE, side_features=1)
    first = (torch.stack([item[name] for item in items[:8]]) for name in ("target", "source", "side", "mask"))
    initialize_flow(flow, Batch(*first))
    shares = side_probe(flow, PairDataset(items), [index // 2 % 4 for index in range(40)])
    assert list(shares) == ["level_1"]
    assert shares["level_1"] > 0.9 if told else shares["level_1"] < 0.2


def test_without_side_values_there_is_no_probe():
    """A flow without side information has nothing to tell."""
    items = [
        {"target": torch.randn(1, *SHAPE), "source": torch.rand(1, *SHAPE), "side": torch.zeros(0),
         "mask": torch.ones(1, *SHAPE, dtype=torch.bool), "scan": f"sub-{index}"}
        for index in range(4)
    ]  # fmt: skip
    flow = DualFlow(preset("dual_glow", levels=2, steps=(1, 1), hidden=(8, 8)), shape=SHAPE)
    assert side_probe(flow, PairDataset(items), [0, 0, 1, 1]) == {}
