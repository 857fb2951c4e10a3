"""What validation measures of a flow."""

import pytest
import torch

from dualflow.data.dataset import PairDataset, collate
from dualflow.flows.diagnostics import explained_variance
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.training.validation import validate


@pytest.fixture(scope="module")
def objective(phantoms):
    """A small DUAL-GLOW, initialised, its prior moved off zero."""
    torch.manual_seed(0)
    spec = preset("dual_glow", steps=[1, 1, 1], hidden=[8, 8, 8])
    model = DualFlow(spec, shape=tuple(phantoms[0]["source"].shape[1:]), side_features=1)
    some = collate(phantoms.items)
    initialize_flow(model, some["target"], some["source"], some["side"], some["mask"])
    with torch.no_grad():
        for parameter in model.priors.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return FlowObjective(model).eval()


def test_explained_variance_is_told_level_by_level(objective, phantoms):
    """The mean of the batches' shares, each batch by its size, so that a curve can be drawn over training."""
    people = PairDataset(phantoms.items[:3])
    terms = validate(objective, people, 2)
    batches = [collate(people.items[:2]), collate(people.items[2:])]
    shares = [
        explained_variance(objective.flow, batch["target"], batch["source"], batch["side"], batch["mask"])
        for batch in batches
    ]
    expected = (2 * shares[0] + shares[1]) / 3
    assert [terms[f"explained_level_{level}"] for level in (1, 2, 3)] == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(set(expected.tolist())) == 3


def test_validation_sees_the_model_as_it_is_used(objective, held_out):
    """In float32, whatever training has: rounding of bfloat16 convolutions is no fault of the weights."""
    terms = validate(objective, held_out, len(held_out))
    batch = collate(held_out.items)
    inputs = [batch[name] for name in ("target", "source", "side", "mask")]
    with torch.no_grad():
        assert terms["nll"] == float(objective(*inputs)["nll"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert terms["nll"] != float(objective(*inputs)["nll"])
    assert terms["round_trip"] < 1e-4
