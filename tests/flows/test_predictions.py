"""One image per person: the ways to predict, what is done to latents, and how much a prior explains."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from flow_zoo import batch, build, each_flow, trained

from dualflow.errors import ConfigError
from dualflow.flows.latent_sampling import LATENT_TRANSFORMS
from dualflow.flows.predictions import PREDICTIONS, predict
from dualflow.flows.presets import PRESETS


@each_flow
def test_predictions_are_functions_of_their_inputs(name):
    """Each prediction is one finite image per person, twice the same, and takes no global random number."""
    flow, (target, source, side) = trained(name), batch()
    for kind in PREDICTIONS:
        if kind == "mean" and flow.spec.mean == "none":
            with pytest.raises(ConfigError, match="choose temperature0"):
                predict(flow, source, side, kind)
            continue
        state = torch.get_rng_state()
        image = predict(flow, source, side, kind)
        assert image.shape == target.shape
        assert image.isfinite().all()
        assert not image.requires_grad
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(9)
        assert torch.equal(image, predict(flow, source, side, kind))
    assert torch.equal(flow.point_estimate(source, side), predict(flow, source, side, flow.spec.prediction))


@pytest.mark.parametrize("name", PRESETS)
def test_predictions_are_what_their_names_say(name):
    """They are the mean image, the decode at temperature 0, the seed's first sample, and the mean of its samples."""
    flow, (_, source, side) = trained(name), batch()

    def samples(n: int) -> torch.Tensor:
        """Mean of n samples of each person, from the seed that the person's source gives."""
        seeds = [int.from_bytes(sha256(one.float().numpy().tobytes()).digest()[:4], "little") for one in source]
        drawn = [
            flow.sample(source[i : i + 1], side[i : i + 1], n, generator=torch.Generator().manual_seed(seed)).mean(0)
            for i, seed in enumerate(seeds)
        ]
        return torch.cat(drawn)

    expected = {
        **({} if flow.spec.mean == "none" else {"mean": flow.mean(source, side)}),
        "temperature0": flow.sample(source, side, temperature=0.0)[0],
        "one_sample": samples(1),
        "sample_mean": samples(flow.spec.prediction_samples),
    }
    assert set(expected) | {"mean"} == set(PREDICTIONS)
    for kind, image in expected.items():
        torch.testing.assert_close(predict(flow, source, side, kind), image)


@each_flow
def test_predictions_do_not_depend_on_the_batch(name):
    """A person's prediction is the same alone, and its noise is that person's own."""
    flow, (_, source, side) = trained(name), batch()
    for kind in ("one_sample", "sample_mean"):
        together = predict(flow, source, side, kind)
        torch.testing.assert_close(predict(flow, source[1:2], side[1:2], kind), together[1:2], rtol=1e-6, atol=1e-9)


def test_c_glow_predicts_by_the_mean_of_ten():
    """Its point estimate is the mean of ten samples, with a smaller error than a single one."""
    flow, (target, source, side) = trained("c_glow"), batch(32, seed=7)
    assert (flow.spec.prediction, flow.spec.prediction_samples) == ("sample_mean", 10)
    errors = {
        kind: (predict(flow, source, side, kind) - target).square().mean() for kind in ("sample_mean", "one_sample")
    }
    assert torch.equal(flow.point_estimate(source, side), predict(flow, source, side, "sample_mean"))
    assert errors["sample_mean"] < 0.8 * errors["one_sample"]


def test_unknown_predictions_are_refused():
    """The message lists the rows."""
    flow, (_, source, side) = build("c_glow"), batch()
    with pytest.raises(ConfigError, match="unknown prediction 'median'; choose from: mean, temperature0, one_sample"):
        predict(flow, source, side, "median")


@each_flow
@pytest.mark.parametrize("tool", LATENT_TRANSFORMS)
def test_latent_tools(name, tool):
    """Every tool gives finite samples that repeat with the seed; at temperature 0 none changes anything."""
    flow, (_, source, side) = trained(name), batch(2)

    def sample(temperature: float, tool: str | None) -> torch.Tensor:
        return flow.sample(source, side, 2, temperature, torch.Generator().manual_seed(1), tool)

    drawn = sample(0.8, tool)
    assert drawn.isfinite().all()
    assert torch.equal(drawn, sample(0.8, tool))
    assert torch.equal(drawn, sample(0.8, "none")) == (tool == "none")
    assert torch.equal(sample(0.0, tool), sample(0.0, "none"))
    if tool == flow.spec.latents:
        assert torch.equal(drawn, sample(0.8, None))


@pytest.mark.parametrize("tool", LATENT_TRANSFORMS)
def test_latent_tools_have_gradients_of_equal_latents(tool):
    """Sets of latents without any spread pass finite gradients on."""
    features = torch.randn(2, 3, 2, 2, 2)
    for temperature in (0.0, 0.5):
        e = torch.zeros(2, 4, 2, 2, 2, requires_grad=True)
        LATENT_TRANSFORMS[tool](e, features, temperature, torch.Generator().manual_seed(0)).square().sum().backward()
        assert e.grad is not None
        assert e.grad.isfinite().all()
