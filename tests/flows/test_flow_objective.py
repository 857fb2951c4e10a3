"""FlowObjective: the loss is the weighted sum of its terms, and each term matches its definition."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from flow_zoo import (
    FLOWS,
    SIDE,
    batch,
    build,
    build_spec,
    each_flow,
    objective_of,
    parametrize_flows,
    small,
    terms,
    trained,
    trained_objective,
)
from torch import Tensor

from dualflow.flows.dequantization import prepare_target
from dualflow.flows.flow_objective import TERMS
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import PRESETS
from dualflow.flows.rng import EVALUATION_SEED
from dualflow.flows.side_information import (
    SideDiscriminator,
    chance_accuracy,
    discriminator_accuracy,
    discriminator_error,
    reversal_strength,
)
from dualflow.flows.spec import FlowSpec

WEIGHTS = {
    "nll": "nll_weight",
    "source_nll": "source_nll_weight",
    "discriminator": "discriminator_weight",
    "decode_l1": "decode_l1",
    "interpolation_l1": "interpolation_l1",
}
DECODING = [name for name in FLOWS if FLOWS[name].decode_l1]


def weight(spec: FlowSpec, term: str) -> float:
    """Return the weight of a term in the loss; only a Glow source has `source_nll`."""
    return float(getattr(spec, WEIGHTS[term])) * (term != "source_nll" or spec.has_source_density)


def gradients(value: Tensor, module: torch.nn.Module) -> Tensor:
    """Return all gradients of a scalar in one vector, with zeros for unused parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    values = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, values, strict=True)]
    )


def prepared(flow: DualFlow, target: Tensor) -> Tensor:
    """Return a target as in evaluation: integers get dequantisation noise from a fixed seed."""
    return prepare_target(target, None, flow.spec, torch.Generator().manual_seed(EVALUATION_SEED))


def test_every_term_is_tested():
    """A new row of TERMS needs an entry in WEIGHTS."""
    assert set(TERMS) == set(WEIGHTS)


def names_of(out):
    """Return the names of terms and monitored numbers, without the loss and the bits of each level."""
    return {name for name in out if name != "loss" and not name.startswith("bits_per_dim_level_")}


@each_flow
@pytest.mark.parametrize("scans", [1, 3])
def test_level_bits_and_log_determinant_add_up_to_the_nll(name, scans):
    """The NLL is the size-weighted sum of the levels' bits per dimension, minus the log-determinant."""
    flow, (target, source, side) = trained(name), batch(scans)
    out = terms(flow, target, source, side)
    latents, log_det = flow.encode(prepared(flow, target), source, side)
    sizes = [z[0].numel() for z in latents]
    bits = sum(size * out[f"bits_per_dim_level_{level}"] for level, size in enumerate(sizes, 1))
    torch.testing.assert_close((bits * log(2) - log_det.mean()) / sum(sizes), out["nll"])


@each_flow
@pytest.mark.parametrize("training", [False, True])
def test_loss_is_the_weighted_sum(name, training):
    """The loss is the sum of weight times term; only terms with a weight, and `nll`, are returned."""
    flow, tensors = trained(name).train(training), batch()
    out = terms(flow, *tensors)
    expected = {term for term in WEIGHTS if weight(flow.spec, term)} | {"nll"}
    assert names_of(out) - {"discriminator_strength", "discriminator_accuracy"} == expected
    torch.testing.assert_close(out["loss"], sum(weight(flow.spec, term) * out[term] for term in expected))
    assert all(value.isfinite() and value.dim() == 0 for value in out.values())


@each_flow
def test_nll_is_the_density_per_voxel(name):
    """In evaluation, `nll` is the mean of -log p(target | source, side) over the batch, in nats per voxel."""
    flow, (target, source, side) = trained(name), batch()
    expected = -flow.log_prob(prepared(flow, target), source, side).mean() / target[0].numel()
    torch.testing.assert_close(terms(flow, target, source, side)["nll"], expected)


@parametrize_flows(DECODING)
def test_decode_l1_is_the_error_of_a_sample(name):
    """`decode_l1` is the mean absolute error of a sample at the spec's temperature; evaluation uses a fixed seed."""
    flow, (target, source, side) = trained(name), batch()
    term = terms(flow, target, source, side)["decode_l1"]
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    sample = flow.draw(flow.condition(source, side), flow.spec.decode_temperature, generator)
    torch.testing.assert_close(term, (sample - prepared(flow, target)).abs().mean())
    if flow.spec.decode_temperature == 0 and flow.spec.dequantisation == "none":
        assert torch.equal(sample.detach(), flow.sample(source, side, temperature=0.0)[0])


@parametrize_flows(DECODING)
def test_decode_l1_reaches_flow_and_source(name):
    """The gradient passes through the inverse to the flow and its source, and is finite."""
    flow, tensors = trained(name).train(), batch()
    term = terms(flow, *tensors)["decode_l1"]
    for part in (flow.flow, flow.source):
        gradient = gradients(term, part)
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_decode_l1_has_finite_gradients(temperature):
    """All gradients are finite, also at temperature 0, where all latents are equal."""
    spec = small("c_flow", decode_temperature=temperature, low_rank=2)
    flow, tensors = build_spec(spec), batch(2)
    initialize_flow(flow, Batch(*tensors))
    terms(flow, *tensors)["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


def test_c_flow_without_decode_l1_is_the_joint_likelihood():
    """Without `decode_l1`, C-Flow's loss is the target's NLL plus the weighted NLL of the source."""
    torch.manual_seed(0)
    flow, (target, source, side) = build_spec(small("c_flow", decode_l1=0.0, source_nll_weight=1.0)).eval(), batch()
    initialize_flow(flow, Batch(target, source, side))
    condition = flow.condition(source, side)
    joint = flow.log_prob(target, source, side) + condition.source_log_prob
    torch.testing.assert_close(terms(flow, target, source, side)["loss"], -joint.mean() / 128, rtol=1e-6, atol=1e-6)
    weighted = build_spec(small("c_flow", decode_l1=0.0)).eval()
    weighted.load_state_dict(flow.state_dict())
    out = terms(weighted, target, source, side)
    torch.testing.assert_close(out["loss"], out["nll"] + 1e-4 * out["source_nll"], rtol=1e-6, atol=1e-6)


@pytest.mark.xdist_group("full_glow")
def test_source_nll_trains_the_source_only():
    """`source_nll` has gradients in the source but not in the target's flow; `nll` has gradients in the source."""
    flow, tensors = trained("full_glow"), batch()
    out = terms(flow, *tensors)
    assert gradients(out["source_nll"], flow.source).any()
    assert not gradients(out["source_nll"], flow.flow).any()
    assert gradients(out["nll"], flow.source).any()


def test_reversal_strength_follows_the_progress():
    """The strength rises from 0 to 1 over the training, and the objective reports it."""
    values = [reversal_strength(share) for share in (0, 0.05, 0.2, 0.5, 1)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[1] == pytest.approx(2 / (1 + exp(-0.5)) - 1)
    assert values[-1] > 0.999
    objective, tensors = objective_of(build("dual_glow")), batch()
    for share, value in zip((0, 0.05, 0.2, 0.5, 1), values, strict=True):
        objective.set_progress(share)
        assert objective(Batch(*tensors))["discriminator_strength"].item() == pytest.approx(value, rel=1e-6)


@pytest.mark.xdist_group("dual_glow")
def test_gradient_reversal_is_scaled_by_the_strength():
    """The flow's gradient is reversed and scaled; the discriminators' gradient is neither."""
    objective, (target, source, side) = trained_objective("dual_glow"), batch()
    flow = objective.flow
    latents = flow.encode(target, source, side)[0]
    discriminators = [module for module in objective.discriminators if isinstance(module, SideDiscriminator)]
    assert len(discriminators) == flow.spec.levels - 1
    errors = [
        discriminator_error(discriminator(z, -1.0), side)
        for discriminator, z in zip(discriminators, latents, strict=False)
    ]
    unreversed = gradients(torch.stack(errors).mean(), flow.flow)
    assert unreversed.any()
    discriminator_gradients = []
    for share in (0.0, 0.1, 1.0):
        objective.set_progress(share)
        term = objective(Batch(target, source, side))["discriminator"]
        torch.testing.assert_close(gradients(term, flow.flow), -reversal_strength(share) * unreversed)
        discriminator_gradients.append(gradients(term, objective.discriminators))
    assert discriminator_gradients[0].any()
    torch.testing.assert_close(discriminator_gradients[0], discriminator_gradients[2])


def test_discriminator_accuracy_counts_known_values():
    """Perfect guesses have accuracy 1 and opposite ones 0; unknown values are ignored."""
    side = torch.tensor([[1.0, -0.5], [-2.0, torch.nan], [0.7, 3.0]])
    assert discriminator_accuracy(side.nan_to_num(-9), side) == 1
    assert discriminator_accuracy(-side.nan_to_num(), side) == 0
    assert discriminator_accuracy(torch.ones_like(side), side) == pytest.approx(3 / 5)
    assert discriminator_accuracy(side.nan_to_num(), torch.full_like(side, torch.nan)) == 0


def test_discriminator_accuracy_of_levels_is_that_of_a_classification():
    """Guessing the mean of a one-hot level says that no one has it; a guess beyond 0.5 says that someone has."""
    levels = torch.eye(3)
    assert discriminator_accuracy(0.6 * levels, levels) == 1
    assert discriminator_accuracy(torch.full_like(levels, 1 / 3), levels) == pytest.approx(2 / 3)
    assert discriminator_accuracy(torch.ones_like(levels), levels) == pytest.approx(1 / 3)
    assert discriminator_accuracy(-levels, levels) == pytest.approx(2 / 3)


def test_chance_is_the_accuracy_of_one_guess_for_all():
    """Three of four people have the first level, two of three known ages are below their mean."""
    side = torch.tensor([[1.0, -0.5], [1.0, torch.nan], [0.0, 3.0], [1.0, -1.0]])
    best = torch.tensor([[1.0, -1.0]]).expand_as(side)
    assert chance_accuracy(side) == discriminator_accuracy(best, side) == pytest.approx(5 / 7)
    assert chance_accuracy(torch.full((2, 1), torch.nan)) == 0


@pytest.mark.xdist_group("dual_glow")
def test_discriminator_accuracy_is_monitored():
    """Discriminators whose output equals the side values have accuracy 1; the opposite sign has 0."""
    objective, (target, source, side) = trained_objective("dual_glow"), batch()
    side = torch.ones_like(side)
    with torch.no_grad():
        for discriminator in objective.discriminators:
            discriminator.head[-1].weight.zero_()
            discriminator.head[-1].bias.fill_(1.0)
    out = objective(Batch(target, source, side))
    assert out["discriminator_accuracy"] == 1
    assert out["discriminator"] == 0
    assert objective(Batch(target, source, -side))["discriminator_accuracy"] == 0


def test_without_side_information_there_is_no_discriminator():
    """A flow without side columns, or with one level, has no discriminator and no discriminator term."""
    target, source, side = batch()
    flow = DualFlow(small("dual_glow"), shape=(8, 4, 4)).double()
    assert names_of(terms(flow, target, source)) == {"nll", "source_nll"}
    one_level = small("dual_glow", levels=1, steps=[1], hidden=[6])
    flow = DualFlow(one_level, shape=(8, 4, 4), side_features=SIDE).double()
    assert names_of(terms(flow, target, source, side)) == {"nll", "source_nll"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_weigh_the_terms_of_their_papers(name):
    """A preset has exactly the terms of its paper, and `nll` has weight 1."""
    extra = {
        "dual_glow": {"source_nll", "discriminator"},
        "full_glow": {"source_nll"},
        "c_flow": {"source_nll", "decode_l1"},
        "puflow": {"interpolation_l1"},
        "dualflow": {"source_nll", "discriminator"},
    }
    spec = PRESETS[name].spec
    assert spec.nll_weight == 1
    assert {term for term in WEIGHTS if weight(spec, term)} == {"nll"} | extra.get(name, set())


@each_flow
def test_parameters_that_a_step_may_leave_out_are_announced(name):
    """Without `uses_all_parameters`, processes look for parameters without a gradient; otherwise there are none."""
    check_announced(build(name))


@pytest.mark.parametrize("weight", [0.0, 0.001])
@pytest.mark.parametrize("side", [False, True])
def test_the_parameters_of_an_unlinked_source_are_announced(weight, side):
    """The ablation without a link: only its own likelihood trains the source."""
    unlinked = {"source": "glow", "prior": "standard", "context": "none", "side_in_context": side}
    unlinked["discriminator_weight"] = 0.0  # refused beside side information in all levels
    check_announced(build_spec(small("dualflow", **unlinked, source_nll_weight=weight)))


def check_announced(flow):
    objective = objective_of(flow).train()
    objective.set_progress(0.0)
    objective(Batch(*batch()))["loss"].backward()
    unused = [key for key, value in objective.named_parameters() if value.requires_grad and value.grad is None]
    assert objective.uses_all_parameters is not bool(unused), unused
