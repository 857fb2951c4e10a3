"""Fixtures that several rooms share: tiny phantoms, and a small flow for them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dualflow.config import ModelConfig, TrainConfig
from dualflow.data.dataset import PairDataset
from dualflow.data.side_encoder import SideEncoder

SHAPE = (16, 16, 16)
SMALL = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "low_rank": 2}
SIDE = {"columns": [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 8.0}]}


def phantom(index):
    """A smooth source, a target that follows from it, an ellipsoid as mask, and an age that one person lacks."""
    draw = np.random.default_rng(index)
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    mask = sum(axis**2 for axis in axes) < 0.8
    source = 0.5 + 3 * gaussian_filter(draw.normal(size=SHAPE), 2)
    target = 1 + 0.8 * (source - 0.5) + gaussian_filter(draw.normal(size=SHAPE), 1) / 2
    volumes = {name: torch.tensor(np.where(mask, image, 0)[None]).float() for name, image in
               (("source", source), ("target", target))}  # fmt: skip
    age = float("nan") if index == 2 else (index - 3) / 2
    return {**volumes, "mask": torch.tensor(mask[None]), "side": torch.tensor([age]), "scan": f"sub-{index:02d}"}


@pytest.fixture(scope="session")
def phantoms():
    """Six people to train on."""
    return PairDataset([phantom(index) for index in range(1, 7)])


@pytest.fixture(scope="session")
def held_out():
    """Two more people."""
    return PairDataset([phantom(index) for index in (7, 8)])


@pytest.fixture(scope="session")
def small_flow():
    """The default flow, small."""
    return ModelConfig(preset="dualflow", options=SMALL)


@pytest.fixture(scope="session")
def quick():
    """A few steps in float32."""
    return TrainConfig(steps=6, validate_every=2, precision="float32", batch_size=2)


@pytest.fixture(scope="session")
def card():
    """What the card of a flow for the phantoms says beside its spec."""
    assert SideEncoder.from_dict(SIDE).names == ["age"]
    return {
        "name": "dualflow", "seed": 0, "kind": "flow", "shape": list(SHAPE), "side": SIDE,
        "study": {"name": "phantoms", "source": "T1w", "target": "FDG", "side": ["age"]},
        "constant_spread": {"voxel": 0.25, "region": 0.125, "regions": 3},
    }  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
