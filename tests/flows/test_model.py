"""DualFlow: density, mean, conditioning, noise and initialisation of the whole model."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from flow_zoo import FLOWS, batch, build, build_spec, each_flow, rounded, small, terms

from dualflow.errors import ConfigError, ShapeError
from dualflow.flows.dequantization import with_background
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import PRESETS, preset


def test_log_prob_is_prior_plus_log_det():
    """Before training, the priors are standard normal and log_prob is the change-of-variables formula."""
    flow, (target, source, side) = build("dual_glow").eval(), batch()
    with torch.no_grad():
        latents, log_det = flow.encode(target, source, side)
        normal = sum(-0.5 * (z.square() + log(2 * pi)).flatten(1).sum(1) for z in latents)
        torch.testing.assert_close(flow.log_prob(target, source, side), normal + log_det)
        nll = terms(flow, target, source, side)["nll"]
    torch.testing.assert_close(nll, -(normal + log_det).mean() / target[0].numel())


def test_density_counts_the_unit_of_the_target():
    """Halving the residual scale of an untrained, identity-like flow changes the log-determinant by M log 2."""
    spec = preset("dualflow", levels=1, steps=[1], hidden=[4], low_rank=0)
    target, source, _ = batch(shape=(4, 4, 4))
    log_dets = []
    for scale in (0.1, 0.05):
        torch.manual_seed(0)
        flow = DualFlow(spec.replace(residual_scale=scale), shape=(4, 4, 4)).double().eval()
        log_dets.append(flow.encode(target, source)[1])
    torch.testing.assert_close(log_dets[1] - log_dets[0], torch.full((3,), 64 * log(2), dtype=torch.float64))


def test_given_mean_replaces_the_mean_model():
    """A given mean shifts the residual: adding c to target and mean does not change the loss."""
    flow, (target, source, side) = build("dualflow").eval(), batch()
    zero = torch.zeros_like(target)
    loss = terms(flow, target, source, side, mean=zero)["nll"]
    torch.testing.assert_close(loss, terms(flow, target, source, side)["nll"])
    shifted = terms(flow, target + 0.01, source, side, mean=zero + 0.01)["nll"]
    torch.testing.assert_close(shifted, loss, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="mean: none"):
        terms(build("dual_glow"), target, source, side, mean=zero)


def test_a_given_spread_replaces_the_map_inside_the_brain():
    """Outside the unit stays the spec's; a spread of another size is refused."""
    flow, (_, source, side) = build("dualflow").eval(), batch()
    source[:, :, :4] = 0
    given = torch.full_like(source[:, :1], 0.3)
    scale = flow.condition(source, side, spread=given).scale
    torch.testing.assert_close(scale[:, :, 4:], given[:, :, 4:])
    assert scale[:, :, :4].unique().tolist() == pytest.approx([flow.spec.residual_scale])
    with pytest.raises(ShapeError, match="spread holds 1 volumes, expected 3"):
        flow.condition(source, side, spread=given[:1])


def test_noise_is_added_in_training_only():
    """Two evaluations are equal; two training passes differ."""
    flow, (target, source, _) = build("dualflow"), batch()
    assert terms(flow, target, source)["nll"] != terms(flow, target, source)["nll"]
    flow.eval()
    assert terms(flow, target, source)["nll"] == terms(flow, target, source)["nll"]


def test_mean_model_is_frozen():
    """It has no trainable parameter and stays in evaluation mode when the flow trains."""
    flow = DualFlow(preset("dualflow", low_rank=0), shape=(16, 16, 16))
    assert not any(parameter.requires_grad for parameter in flow.mean_model.parameters())
    assert flow.train().training
    assert not flow.mean_model.training


def test_point_estimate_is_the_mean_or_a_decode():
    """With a mean model it is the mean image; without one it is the decode at temperature 0."""
    _, source, side = batch()
    with_mean, without = build("dualflow").eval(), build("dual_glow").eval()
    assert torch.equal(with_mean.point_estimate(source, side), with_mean.mean(source, side))
    assert torch.equal(without.point_estimate(source, side), without.sample(source, side, temperature=0.0)[0])


def test_side_values_may_be_unknown():
    """All-NaN side values equal no side values; a wrong size is refused."""
    flow, (target, source, side) = build("dualflow").eval(), batch()
    unknown = torch.full_like(side, torch.nan)
    assert torch.equal(flow.log_prob(target, source), flow.log_prob(target, source, unknown))
    with pytest.raises(ShapeError, match="one row per volume"):
        flow.log_prob(target, source, side[:, :2])


@each_flow
def test_every_flow_takes_several_sources(name):
    """With two sources a flow trains, inverts and samples; its density depends on each source."""
    spec = FLOWS[name]
    flow, (target, source, side) = build_spec(spec, source_channels=2), batch(4)
    source = torch.cat([source, source.square().flip(2)], dim=1)
    target = rounded(target) if spec.dequantisation == "uniform" else target
    initialize_flow(flow, Batch(target, source, side))
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        terms(flow, target, source, side)["loss"].backward()
        optimiser.step()
    flow.eval()
    with torch.no_grad():
        latents, _ = flow.encode(target, source, side)
        torch.testing.assert_close(flow.decode(latents, source, side), target)
        assert flow.sample(source, side, n=2).shape == (2, *target.shape)
        assert flow.point_estimate(source, side).shape == target.shape
    flow.log_prob(target, source.requires_grad_(), side).sum().backward()
    assert source.grad is not None
    assert (source.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()
    with pytest.raises(ShapeError, match=r"source of size \(4, 1, 8, 4, 4\), expected \(N, 2, 8, 4, 4\)"):
        flow.log_prob(target, source[:, :1], side)


@each_flow
def test_only_the_mean_reads_the_detail_of_a_source(name):
    """With its mean given, a flow initialises, trains and encodes without a look at the detail."""
    spec = FLOWS[name]
    target, source, side = batch()
    target = rounded(target) if spec.dequantisation == "uniform" else target
    detailed = torch.cat([source, torch.rand_like(source)], dim=1)
    results = []
    for one in (source, detailed):
        flow = build_spec(spec)
        initialize_flow(flow, Batch(target, one, side))
        loss = terms(flow, target, one, side)["loss"]
        results.append((loss, flow.eval().condition(one, side, None if spec.mean == "none" else target)))
        if flow.source.glow is not None:
            torch.testing.assert_close(flow.source_log_prob(one), flow.source_log_prob(source))
    torch.testing.assert_close(results[0][0], results[1][0])
    for first, second in zip(results[0][1].features, results[1][1].features, strict=True):
        torch.testing.assert_close(first, second)


def test_dual_glow_side_enters_the_coarsest_prior_only():
    """Another side value changes the decode's coarsest latents only."""
    torch.manual_seed(0)
    flow, (_, source, side) = build("dual_glow").eval(), batch()
    for prior in flow.priors:
        if prior.side is not None:
            torch.nn.init.normal_(prior.side.weight)
    first, second = (flow.encode(flow.sample(source, s, temperature=0.0)[0], source, s)[0] for s in (side, side + 1))
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


def test_the_layers_of_the_default_do_not_see_the_source():
    """Its features are those of source and mean image; side values reach the finer levels by that image alone."""
    flow, (target, source, side) = build("dualflow").eval(), batch()
    mean = torch.zeros_like(target)
    condition = flow.condition(source, side, mean)
    others = {
        "source": flow.condition(source.roll(1, 0), side, mean),
        "mean": flow.condition(source, side, mean + target),
        "side": flow.condition(source, side + 1, mean),
    }
    residual = torch.randn_like(target)
    latents = flow.flow.encode(residual, condition.maps).latents
    for name, other in others.items():
        assert all(map(torch.equal, latents, flow.flow.encode(residual, other.maps).latents))
        assert all(map(torch.equal, condition.features, other.features)) == (name == "side")


def test_dual_glow_loss_is_its_terms():
    """The loss of dual_glow is the weighted sum of its three terms."""
    flow, (target, source, side) = build("dual_glow").eval(), batch()
    out = terms(flow, target, source, side)
    expected = out["nll"] + 0.001 * out["source_nll"] + 0.01 * out["discriminator"]
    torch.testing.assert_close(out["loss"], expected)


def test_initialisation_standardises_latents():
    """After initialisation the finest latents of the same scans have about unit variance."""
    flow, (target, source, side) = build("dualflow"), batch(16)
    initialize_flow(flow, Batch(target, source, side))
    latents, _ = flow.eval().encode(target, source, side)
    assert 0.6 < latents[0].std() < 1.6


def test_invalid_sizes_are_refused():
    """The error names the nearest valid sizes, or the grid of the model."""
    with pytest.raises(ShapeError, match=r"multiples of 8, the nearest \(40, 48, 40\) and \(48, 48, 48\)"):
        DualFlow(preset("dualflow"), shape=(45, 48, 46))
    target, source, side = batch(shape=(4, 4, 4))
    with pytest.raises(ShapeError, match=r"source of size \(3, 1, 4, 4, 4\), expected \(N, 1, 8, 4, 4\)"):
        build("dualflow").log_prob(target, source, side)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_refuses_sizes_it_cannot_halve(name):
    """The error names the nearest valid sizes."""
    with pytest.raises(ShapeError, match=r"multiples of 8, the nearest \(8, 8, 8\) and \(16, 8, 16\)"):
        DualFlow(preset(name), shape=(12, 8, 9))


def test_the_background_is_replaced_by_noise():
    """The objective ignores the target outside the mask; evaluation draws the noise from a fixed seed."""
    spec = small("c_flow", background_noise=0.3)
    flow, (target, source, side) = build_spec(spec).eval(), batch()
    inside = torch.zeros_like(target, dtype=torch.bool)
    inside[:, :, 2:6] = True
    first, second = (terms(flow, image, source, side, inside) for image in (target, torch.where(inside, target, 99.0)))
    torch.testing.assert_close(first["nll"], second["nll"], rtol=0, atol=0)
    assert first["nll"] != terms(flow, target, source, side)["nll"]
    flow.train()
    with torch.no_grad():
        assert terms(flow, target, source, side, inside)["nll"] != terms(flow, target, source, side, inside)["nll"]
    torch.manual_seed(0)
    filled = with_background(target, inside, spec)
    assert torch.equal(filled[inside], target[inside])
    assert filled[~inside].std().item() == pytest.approx(0.3, rel=0.2)
    assert with_background(target, None, spec) is target
    assert with_background(target, inside, spec.replace(background_noise=0.0)) is target


def test_decode_l1_ignores_voxels_outside_the_mask():
    """`decode_l1` is the mean absolute error inside the mask."""
    flow, (target, source, side) = build_spec(small("c_flow", decode_temperature=0.0)).eval(), batch()
    inside = torch.zeros_like(target, dtype=torch.bool)
    inside[:, :, 2:6] = True
    decoded = flow.sample(source, side, temperature=0.0)[0]
    expected = (decoded - target).abs()[inside].mean()
    torch.testing.assert_close(terms(flow, target, source, side, inside)["decode_l1"].detach(), expected)


def test_sample_spread_follows_the_low_rank_base():
    """The volume mean varies more with correlated latents than with independent ones."""
    torch.manual_seed(0)
    flow, (_, source, side) = build_spec(small("dualflow", whitening=False)).eval(), batch(1)
    base = flow.base

    def spread() -> torch.Tensor:
        samples = flow.sample(source, side, n=400, generator=torch.Generator().manual_seed(0))
        return samples.mean((1, 2, 3, 4, 5)).std()

    independent = spread()
    # The first direction is the first coarsest latent of a new base: the low-pass channel.
    base.law.cholesky[0, 0, 0] = 4.0
    assert spread() > 2 * independent


def test_initialisation_takes_the_scans_that_fit_at_once(monkeypatch):
    """Actnorms are initialised on the first scans alone, so that memory does not grow with the grid."""
    spec, shape = preset("dualflow", levels=2, steps=(1, 1), hidden=(4, 4), low_rank=3), (8, 8, 8)
    target, source = torch.randn(6, 1, *shape), torch.randn(6, 1, *shape)
    shifts = []
    for scans, count in ((6, 6), (6, 2), (2, 2)):
        monkeypatch.setattr("dualflow.flows.initialization.INITIALISATION_VOXELS", count * 8**3)
        torch.manual_seed(0)
        flow = DualFlow(spec, shape=shape)
        torch.manual_seed(1)
        initialize_flow(flow, Batch(target[:scans], source[:scans]))
        shifts.append(flow.flow.levels[0].steps[0].pieces["actnorm"].shift.clone())
    assert not torch.equal(shifts[0], shifts[1])
    torch.testing.assert_close(shifts[1], shifts[2], atol=0.02, rtol=0)


@pytest.mark.parametrize(("count", "temperature"), [(0, 1.0), (1, -0.1), (1, float("inf")), (1, float("nan"))])
def test_samples_that_cannot_be_drawn_are_refused(count, temperature):
    """No sample, and temperatures that are negative or not finite."""
    flow, (_, source, side) = build("dualflow").eval(), batch()
    with pytest.raises(ConfigError, match="give at least 1 at 0 or more"):
        flow.sample(source, side, count, temperature)
