"""Point predictions of a flow."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from flow_zoo import batch, build, each_flow, parametrize_flows, trained

from dualflow.errors import ConfigError
from dualflow.flows.predictions import PREDICTIONS, predict
from dualflow.flows.presets import PRESETS


@each_flow
def test_predictions_are_deterministic(name):
    """Each prediction is one finite image per subject, repeatable, and uses no global random numbers."""
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


@parametrize_flows(PRESETS)
def test_predictions_match_their_names(name):
    """They are the mean image, the decode at temperature 0, one sample, and the mean of samples."""
    flow, (_, source, side) = trained(name), batch()

    def samples(n: int) -> torch.Tensor:
        """Return the mean of n samples of each subject, with the digest of its source as seed."""
        digests = [sha256(volume.float().numpy().tobytes()).digest() for volume in source]
        seeds = [int.from_bytes(digest[:4], "little") for digest in digests]
        means = [
            flow.sample(source[i : i + 1], side[i : i + 1], n, generator=torch.Generator().manual_seed(seed)).mean(0)
            for i, seed in enumerate(seeds)
        ]
        return torch.cat(means)

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
    """A subject's prediction, noise included, is the same alone and in a batch."""
    flow, (_, source, side) = trained(name), batch()
    for kind in ("one_sample", "sample_mean"):
        images = predict(flow, source, side, kind)
        torch.testing.assert_close(predict(flow, source[1:2], side[1:2], kind), images[1:2], rtol=1e-6, atol=1e-9)


@pytest.mark.xdist_group("c_glow")
def test_c_glow_predicts_the_mean_of_ten_samples():
    """The mean of ten samples has a smaller error than a single sample."""
    flow, (target, source, side) = trained("c_glow"), batch(32, seed=7)
    assert (flow.spec.prediction, flow.spec.prediction_samples) == ("sample_mean", 10)
    errors = {
        kind: (predict(flow, source, side, kind) - target).square().mean() for kind in ("sample_mean", "one_sample")
    }
    assert torch.equal(flow.point_estimate(source, side), predict(flow, source, side, "sample_mean"))
    assert errors["sample_mean"] < 0.8 * errors["one_sample"]


def test_unknown_predictions_are_refused():
    """The error lists the rows of PREDICTIONS."""
    flow, (_, source, side) = build("c_glow"), batch()
    with pytest.raises(ConfigError, match="unknown prediction 'median'; choose from: mean, temperature0, one_sample"):
        predict(flow, source, side, "median")
