"""The frame of the generative networks: standardisation, samples, and the promises that all of them keep."""

from __future__ import annotations

import pytest
import torch
from error_law import SHAPE, draw_people

from dualflow.baselines.cvae import ConditionalVAE
from dualflow.baselines.latent_diffusion import LatentDiffusion
from dualflow.baselines.rectified_flow import RectifiedFlow
from dualflow.baselines.residual_sampler import LIMIT, ResidualSampler
from dualflow.flows.objective import Batch

KINDS = (ConditionalVAE, RectifiedFlow, LatentDiffusion)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request) -> ResidualSampler:
    """A model with random weights everywhere, as after training."""
    torch.manual_seed(0)
    model = request.param(SHAPE, 1, width=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def people() -> dict[str, torch.Tensor]:
    """Two people with a margin outside the brain."""
    people = draw_people(2, torch.Generator().manual_seed(0))
    people["source"][:, :, :2] = 0
    return people


def test_samples_follow_seed_source_and_side(model, people):
    """Equal seeds give equal samples, however many are drawn; source and side values change them."""
    arguments = people["source"], people["side"]
    first, again, more = (model.sample(*arguments, n, 1.0, torch.Generator().manual_seed(0)) for n in (3, 3, 9))
    assert first.shape == (3, 2, 1, *SHAPE)
    assert torch.equal(first, again)
    assert torch.allclose(first, more[:3], atol=1e-4)
    assert (first[0] - first[1]).abs().max() > 0.1
    brighter = people["source"] * 2
    for changed in ((brighter, people["side"]), (people["source"], -people["side"])):
        other = model.sample(*changed, 3, 1.0, torch.Generator().manual_seed(0))
        assert (other - first).abs().max() > 1e-3
    assert not first[:, :, :, :2].any()


def test_the_temperature_scales_the_spread(model, people):
    """Temperature 0 gives equal samples."""
    cold = model.sample(people["source"], people["side"], 2, 0.0, torch.Generator().manual_seed(0))
    assert torch.allclose(cold[0], cold[1], atol=1e-4)


def test_errors_are_standardised_and_restored(people):
    """Bands and image are inverse to each other, and errors are limited to LIMIT standard deviations."""
    model = RectifiedFlow(SHAPE, 1)
    model.spread.fill_(0.5)
    model.band_scale.mul_(3)
    start = torch.zeros_like(people["target"])
    inside = people["source"] != 0
    error = (people["target"] * inside).clamp(-1, 1)
    assert torch.allclose(model.restored(model.standardised(error), start, people["source"]), error, atol=1e-5)
    extreme = model.restored(model.standardised(100 * error), start, people["source"])
    assert float(extreme.abs().max()) == pytest.approx(0.5 * LIMIT)


def test_a_moved_scan_is_divided_by_a_moved_map(people):
    """As augmentation moves it; voxels outside the brain, whose spread may be 0 by then, do not matter."""
    model = RectifiedFlow(SHAPE, 1)
    model.spread.copy_(torch.rand(SHAPE) + 0.5)
    inside, objective = people["source"] != 0, model.objective()
    objective.terms = lambda bands, *_: {"bands": bands}
    batch = Batch(people["target"], people["source"], people["side"], inside)
    moved = torch.where(inside, model.unit(), 0.0)
    own, given, twice = (objective(batch._replace(spread=spread))["bands"] for spread in (None, moved, 2 * moved))
    assert own.any()
    assert torch.equal(own, given)
    assert torch.allclose(own, 2 * twice)


def test_the_fit_gives_bands_variance_1():
    """Over the training people, standardised cross-fitted errors have a mean square of 1 in each band."""
    people = draw_people(12, torch.Generator().manual_seed(1))
    pairs = [{name: value[index] for name, value in people.items()} for index in range(12)]
    model = RectifiedFlow(SHAPE, 1)
    images = model.fit(pairs, [index % 3 for index in range(12)])
    bands = model.standardised(people["target"] - torch.stack(images))
    assert torch.allclose(bands.square().mean(dim=(0, 2, 3, 4)), torch.ones(8), atol=1e-3)


def test_the_start_is_the_closed_form(people):
    """Before training the point estimate is the closed-form prediction, and samples are independent noise around it."""
    torch.manual_seed(0)
    model = RectifiedFlow(SHAPE, 1)
    estimate = model.point_estimate(people["source"], people["side"])
    assert torch.allclose(estimate, torch.zeros_like(estimate), atol=1e-5)
    samples = model.sample(people["source"], people["side"], 16, 1.0, torch.Generator().manual_seed(0))
    assert float(samples[:, :, 0][:, people["source"][:, 0] != 0].std()) == pytest.approx(1.0, abs=0.1)
