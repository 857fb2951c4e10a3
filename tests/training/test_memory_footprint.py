"""Memory of a training, computed from tensor sizes."""

from __future__ import annotations

import pytest
import torch

from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.flows.objective import Batch
from dualflow.training import fit_base
from dualflow.training import memory_footprint as module
from dualflow.training.memory_footprint import footprint
from dualflow.training.step_time import random_batch, random_training

OPTIONS = {"levels": 2, "steps": [1, 1], "hidden": [4, 4], "low_rank": 2}


def config(*, train=None, options=OPTIONS, preset="dualflow", edge=16):
    """A tiny flow."""
    return parse_config(
        {
            "study": {"name": "tiny"},
            "cohort": {"subjects": 20},
            "preprocess": {"shape": [edge] * 3, "spacing_mm": 12.0},
            "model": {"preset": preset, "options": options},
            "train": train or {},
        }
    )


def test_peak_bytes_match_a_count_by_hand():
    """Peak of two operations by hand: a square of 4 kB and its sum of 4 kB are alive at once, later only one."""

    def action(_model, batch):
        squared = batch.source * batch.source
        total = squared + 1
        del squared
        total + 1

    x = torch.zeros(1024)
    assert module._peak_bytes(torch.nn.Linear(1, 1), Batch(x, x), action) == 2 * 4096


def test_the_footprint_matches_the_model():
    """Parameters match the real model, which is held in five copies between steps."""
    study = config()
    model, _ = random_training(study, study.model)
    sizes = footprint(study, scans=10)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.parameters == trained
    fitted = sum(t.numel() * t.element_size() for t in model.buffers())
    fitted += sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    assert sizes.weights == 5 * 4 * trained + 3 * fitted
    assert sizes.scans == 10 * 21 * 16**3
    assert sizes.model == 4 * trained + fitted
    assert sizes.peak == sizes.scans + max(sizes.mean, sizes.weights + sizes.step, sizes.model + sizes.start)


def test_a_stacked_mean_needs_the_memory_of_its_larger_regression():
    """It has more features than the local linear regression."""
    plain, stacked = (
        footprint(config(options={**OPTIONS, "mean": mean}), 10).mean for mean in ("local_linear", "stacked")
    )
    assert 1.2 * plain < stacked < 4 * plain


def test_depth_costs_memory_unless_reversible():
    """Stored activations of a deep flow exceed reversible ones several times and grow with the batch."""

    def step_bytes(memory, depth, batch=2):
        options = {"levels": 1, "steps": [depth], "hidden": [16]}
        study = config(train={"memory": memory, "batch_size": batch}, options=options, preset="dual_glow", edge=32)
        return footprint(study, scans=10).step

    assert step_bytes("reversible", 24) < 1.5 * step_bytes("reversible", 4)
    assert step_bytes("stored", 24) > 4 * step_bytes("reversible", 24)
    assert step_bytes("stored", 24, batch=4) == pytest.approx(2 * step_bytes("stored", 24), rel=0.1)


def test_processes_share_the_batch():
    """Each process holds the activations of its share."""
    assert footprint(config(train={"batch_size": 4, "processes": 2}), 10).step == footprint(config(), 10).step


def test_the_fit_after_the_last_step_counts():
    """Directions of a base hold several copies of all means; a flow without a base has no such fit."""
    options = {**OPTIONS, "low_rank": 0}
    based, spread, plain = (
        footprint(study, 10)
        for study in (
            config(edge=32),
            config(edge=32, options=options),
            config(edge=32, options=options, preset="dual_glow"),
        )
    )
    means = 64 + 30  # blocks of 8 voxels a side, and regions of the atlas on this grid
    assert based.end > 5 * 4 * means * 32**3
    assert spread.end == 0 < spread.whitening
    assert plain.end == plain.whitening == 0
    # Adam, average and best weights are gone by then.
    assert based.on_device == based.whitening + max(based.weights + based.step, based.model + based.end)


@pytest.mark.parametrize(
    ("size", "at_once"),
    [({}, 4), ({"steps": [3, 3], "hidden": [32, 32]}, 4), ({"steps": [3, 3], "hidden": [32, 32]}, 2)],
)
def test_the_end_is_the_measured_peak_of_the_base(monkeypatch, size, at_once):
    """Directions of a real flow, from 8 blocks and 24 regions, take about as much as forecast.

    In the larger flow the activations of the scans that are decoded at once take most of it.
    """
    monkeypatch.setattr(fit_base, "MAX_BLOCKS", 8)
    monkeypatch.setattr(fit_base, "GRADIENT_VOXELS", at_once * 16**3)
    study = config(edge=16, options={**OPTIONS, **size, "whitening": False})
    flow = random_training(study, study.model)[0].flow.eval()
    batch = random_batch(study, flow, fit_base.GRADIENT_PEOPLE)
    pairs = PairDataset([{name: part[index] for name, part in batch.items()} for index in range(len(batch["target"]))])
    weights = torch.rand(8 + 24, *flow.shape)
    with module._count_live_bytes([*flow.parameters(), *flow.buffers()]) as live:
        live.add(weights, 4 * weights.numel())
        rows = fit_base.mean_gradients(flow, pairs, weights)
        fit_base.orthonormal(rows, flow.base.law.rank)
    assert 0.75 < live.peak / module._directions(study, flow, regions=24) < 1.1
