"""Validation metrics of a flow."""

import pytest
import torch

from dualflow.data.dataset import PairDataset, collate
from dualflow.flows.diagnostics import explained_variance
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import preset
from dualflow.training.validation import validate


@pytest.fixture(scope="module")
def objective(phantoms):
    """Objective of a small initialised DUAL-GLOW with perturbed priors."""
    torch.manual_seed(0)
    spec = preset("dual_glow", steps=[1, 1, 1], hidden=[8, 8, 8])
    model = DualFlow(spec, shape=tuple(phantoms[0]["source"].shape[1:]), side_features=1)
    scans = collate(phantoms.items)
    initialize_flow(model, Batch(scans["target"], scans["source"], scans["side"], scans["mask"]))
    with torch.no_grad():
        for parameter in model.priors.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return FlowObjective(model).eval()


def test_explained_variance_is_reported_for_each_level(objective, phantoms):
    """It is the mean over batches, weighted by their sizes."""
    pairs = PairDataset(phantoms.items[:3])
    terms = validate(objective, pairs, 2)
    batches = [collate(pairs.items[:2]), collate(pairs.items[2:])]
    shares = [
        explained_variance(objective.flow, batch["target"], batch["source"], batch["side"], batch["mask"])
        for batch in batches
    ]
    expected = (2 * shares[0] + shares[1]) / 3
    assert [terms[f"explained_level_{level}"] for level in (1, 2, 3)] == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(set(expected.tolist())) == 3


def test_validation_runs_in_float32(objective, held_out):
    """As at inference; bfloat16 rounding would blur the comparison of weights."""
    terms = validate(objective, held_out, len(held_out))
    batch = collate(held_out.items)
    inputs = [batch[name] for name in ("target", "source", "side", "mask")]
    with torch.no_grad():
        assert terms["nll"] == float(objective(Batch(*inputs))["nll"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert terms["nll"] != float(objective(Batch(*inputs))["nll"])
    assert terms["round_trip"] < 1e-4


def test_only_voxels_that_a_target_shows_are_scored(objective, held_out):
    """Elsewhere it holds the mean of other people."""
    item = held_out[0]
    lowest = torch.arange(16)[:, None, None] < 5
    seen, target = item["mask"] & ~lowest, torch.where(lowest, 9.0, item["target"])
    terms = validate(objective, PairDataset([{**item, "target": target, "shown": seen}]), 1)
    with torch.no_grad():
        image = objective.point_estimate(item["source"][None], item["side"][None])[0].float()
    assert terms["mae"] == pytest.approx(float((image - item["target"])[seen].abs().mean()), rel=1e-5)
    expected = torch.corrcoef(torch.stack([image[seen], item["target"][seen]]))[0, 1]
    assert terms["pearson_r"] == pytest.approx(float(expected), rel=1e-4)
