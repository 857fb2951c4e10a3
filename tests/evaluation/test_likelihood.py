"""NLL inside the mask for distributions with a known marginal, and wrong and blurred sources."""

from math import log

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from dualflow.data.dataset import collate
from dualflow.evaluation.likelihood import (
    HiddenLaw,
    another_subject,
    blur_source,
    exchange_source,
    likelihood,
    mask_bound,
    mask_nll,
)
from dualflow.flows.diagnostics import explained_variance
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import preset
from dualflow.imaging.intensity import INSIDE as INTENSITY_INSIDE
from dualflow.inference.predict import load_predictor

WIDTH = 0.2
SPEC = preset("dualflow", background_noise=WIDTH)
MASK = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0], dtype=torch.bool).view(1, 2, 2, 2)
INSIDE = MASK.flatten()


def gaussian(covariance):
    """A Gaussian of eight voxels as a density of volumes, and as a distribution."""
    distribution = MultivariateNormal(torch.zeros(8, dtype=torch.float64), covariance)
    return (lambda volumes: distribution.log_prob(volumes.flatten(1).double())), distribution


def correlated():
    """A covariance in which brain and background depend on each other."""
    root = torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return 0.05 * root @ root.T + 0.1 * torch.eye(8, dtype=torch.float64)


def nll(density, target, *, spec=SPEC, draws=4, seed=0):
    return mask_bound(density, target, MASK, spec, draws=draws, seed=seed)


@pytest.mark.parametrize(
    ("noises", "width"),
    [
        ({"background_noise": 0.3, "noise": 0.05}, 0.3),
        ({"background_noise": 0.0, "noise": 0.05}, 0.05),
        ({"background_noise": 0.0, "noise": 0.0}, 0.01),
    ],
    ids=["background noise", "noise alone", "no noise"],
)
def test_the_bound_is_exact_if_the_background_is_drawn_from_its_distribution(noises, width):
    """An independent background of the true width leaves the NLL of the brain's marginal after one draw."""
    density, _ = gaussian(torch.diag(torch.where(INSIDE, 1.5, width).double() ** 2))
    target = torch.where(MASK, torch.randn(MASK.shape, generator=torch.Generator().manual_seed(1)), 7.0)
    truth = -Normal(0.0, 1.5).log_prob(target[MASK]).mean()
    assert nll(density, target, spec=SPEC.replace(**noises), draws=1) == pytest.approx(float(truth), rel=1e-5)


def test_the_excess_of_the_bound_is_the_divergence_of_the_background():
    """For a correlated Gaussian the excess is KL(q || p(background | brain)) per voxel of the mask."""
    covariance = correlated()
    density, distribution = gaussian(covariance)
    torch.manual_seed(3)
    target = torch.where(MASK, distribution.sample().view(MASK.shape).float(), 0.0)
    brain, cross = (covariance[INSIDE][:, INSIDE], covariance[~INSIDE][:, INSIDE])
    x = target[MASK].double()
    marginal = MultivariateNormal(torch.zeros(4, dtype=torch.float64), brain)
    gain = cross @ torch.linalg.inv(brain)
    conditional = MultivariateNormal(gain @ x, covariance[~INSIDE][:, ~INSIDE] - gain @ cross.T)
    q = MultivariateNormal(torch.zeros(4, dtype=torch.float64), WIDTH**2 * torch.eye(4, dtype=torch.float64))
    truth = -float(marginal.log_prob(x)) / 4
    excess = float(kl_divergence(q, conditional)) / 4
    assert excess > 0.1
    assert nll(density, target, draws=20000) == pytest.approx(truth + excess, abs=0.02 * excess)
    assert nll(density, target) == nll(density, target) != nll(density, target, seed=1)


def smooth_field(size=24, inside=0.4):
    """A smooth Gaussian field as a density; a sample, a mask, and the exact NLL per voxel of the mask."""
    generator = torch.Generator().manual_seed(4)
    axis = torch.arange(size, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (axis[:, None] - axis).square())
    covariance = 0.01 * torch.kron(kernel, kernel) + 0.02 * torch.eye(size**2, dtype=torch.float64)
    precision, constant = torch.linalg.inv(covariance), torch.logdet(2 * torch.pi * covariance)
    noise = torch.randn(size**2, generator=generator, dtype=torch.float64)
    x = torch.linalg.cholesky(covariance) @ noise
    mask = torch.rand(size**2, generator=generator) < inside
    marginal = MultivariateNormal(torch.zeros(int(mask.sum()), dtype=torch.float64), covariance[mask][:, mask])
    truth = -float(marginal.log_prob(x[mask])) / int(mask.sum())
    shape = (1, 1, size, size)

    def density(volumes):
        values = volumes.flatten(1).double()
        return -0.5 * (((values @ precision) * values).sum(1) + constant)

    return density, x.float().view(shape), mask.view(shape), truth


@pytest.mark.parametrize("width", [0.12, 0.17, 0.25])
def test_the_estimate_is_within_its_slack_of_the_exact_marginal(width):
    """Bounds of one density differ with the width of the background noise; the estimates agree with the truth."""
    density, target, mask, truth = smooth_field()
    spec = preset("dualflow", background_noise=width)
    bound = mask_bound(density, target, mask, spec, draws=16, seed=0)
    coarse, fine = (mask_nll(density, target, mask, spec, draws=16, steps=steps, seed=0) for steps in (16, 64))
    for estimate in (coarse, fine):
        assert abs(estimate.nll - truth) < estimate.slack
        assert 1 <= estimate.effective_draws <= 16
    assert bound - truth > 3 * (coarse.nll - truth)
    assert fine.nll == pytest.approx(truth, abs=0.03)


def test_bounds_of_different_background_noise_are_not_comparable():
    """The same density has bounds that differ by 0.4 nats per voxel, although its NLL is one number."""
    density, target, mask, _ = smooth_field()
    bounds, estimates = [], []
    for width in (0.17, 0.25):
        spec = preset("dualflow", background_noise=width)
        bounds.append(mask_bound(density, target, mask, spec, draws=16, seed=0))
        estimates.append(mask_nll(density, target, mask, spec, draws=16, steps=64, seed=0))
    assert bounds[1] - bounds[0] > 0.3
    first, second = estimates
    assert abs(second.nll - first.nll) < first.slack + second.slack < 0.05


def test_a_density_that_knows_its_background_has_no_slack():
    """With an independent background of the true width all weights are equal."""
    density, _ = gaussian(torch.diag(torch.where(INSIDE, 1.5, WIDTH).double() ** 2))
    target = torch.where(MASK, 0.7, 0.0)
    estimate = mask_nll(density, target, MASK, SPEC, draws=4, steps=4, seed=0)
    assert estimate.nll == pytest.approx(-float(Normal(0.0, 1.5).log_prob(torch.tensor(0.7))), rel=1e-5)
    assert estimate.slack == pytest.approx(0, abs=1e-5)
    assert estimate.effective_draws == pytest.approx(4, abs=1e-3)


@pytest.mark.parametrize("draws", [1, 2])
def test_the_slack_is_unknown_if_all_moves_are_too_long(draws):
    """The background is far narrower than its noise in training, so plain importance sampling is all there is."""
    density, _ = gaussian(torch.diag(torch.where(INSIDE, 1.5, WIDTH / 100).double() ** 2))
    estimate = mask_nll(density, torch.where(MASK, 0.7, 0.0), MASK, SPEC, draws=draws, steps=4, seed=0)
    assert estimate.nll > 1000
    assert estimate.slack == np.inf


def test_a_hidden_voxel_of_a_known_law_costs_nothing():
    """With q equal to the law of the voxels outside the mask, the bound is the marginal of the others."""
    mean, sd = torch.linspace(0.5, 1.2, 8), torch.linspace(0.1, 0.3, 8)
    law = MultivariateNormal(mean.double(), torch.diag(sd.double() ** 2))
    target = torch.where(MASK, 0.9, torch.nan)
    hidden = HiddenLaw(mean.view(MASK.shape), sd.view(MASK.shape))
    density = lambda volumes: law.log_prob(volumes.flatten(1).double())  # noqa: E731
    bound = mask_bound(density, target, MASK, SPEC, draws=1, seed=0, hidden=hidden)
    truth = -Normal(mean[INSIDE], sd[INSIDE]).log_prob(torch.tensor(0.9)).mean()
    assert bound == pytest.approx(float(truth), rel=1e-5)


def test_voxels_out_of_view_are_integrated_out(model_folder, phantoms):
    """A target that misses its lowest slices scores as the whole one, but for the slack of the bound."""
    flow, item = load_predictor(model_folder).flow, phantoms[0]
    slab = torch.zeros_like(item["mask"])
    slab[..., : int(item["mask"].nonzero()[:, 3].min()) + 2] = True
    cut = {**item, "target": torch.where(slab & item["mask"], float(INTENSITY_INSIDE), item["target"])}
    scores, whole = (likelihood(flow, one, None, voxel_mm=(4.0,) * 3, draws=2, steps=8, seed=0) for one in (cut, item))

    def density(volumes):
        condition = flow.condition(item["source"][None], item["side"][None])
        return flow.density(volumes, condition.repeat(len(volumes)))[0]

    with torch.no_grad():
        counted = mask_bound(density, cut["target"], item["mask"], flow.spec, draws=2, seed=0)
    assert counted - whole["nll_true"] > 5
    assert abs(scores["nll_true"] - whole["nll_true"]) < 0.2
    assert abs(scores["bits_in_mask"] - whole["bits_in_mask"]) < 0.1


def test_densities_are_compared_on_the_same_draws():
    """Densities that differ by a factor differ by its logarithm exactly, for any number of draws."""
    density, _ = gaussian(correlated())
    target = torch.where(MASK, 0.3, 0.0)
    lower = nll(lambda volumes: density(volumes) + 2.0, target, draws=1)
    assert nll(density, target, draws=1) - lower == pytest.approx(2.0 / 4, rel=1e-12)


def test_a_dequantised_target_has_the_density_of_its_bins():
    """A density that is flat in each bin gives the mass of the bins over their width for every draw.

    If it rises within a bin as 2u, u in [0, 1), the bound exceeds this by -E log 2u = 1 - log 2.
    """
    width, share = 0.5, 0.25

    def density(volumes):
        # The first of four bins has the share, and the rest is divided equally.
        inside = (torch.where(volumes < width, share, (1 - share) / 3) / width).log()
        return torch.where(MASK, inside, Normal(0.0, WIDTH).log_prob(volumes)).flatten(1).double().sum(1)

    target = torch.zeros(MASK.shape)
    target.view(-1)[0] = 2 * width
    spec = SPEC.replace(dequantisation="uniform", bin_width=width)
    truth = -(3 * log(share / width) + log(0.25 / width)) / 4
    assert nll(density, target, spec=spec, draws=3) == pytest.approx(truth, rel=1e-6)

    def rising(volumes):
        position = torch.where(MASK, volumes / width % 1, 0.5)
        return density(volumes) + (2 * position).log().flatten(1).double().sum(1)

    assert nll(rising, target, spec=spec, draws=40000) == pytest.approx(truth + 1 - log(2), abs=0.01)


def test_the_blur_stays_inside_the_mask_and_is_measured_in_mm(phantoms):
    """A constant stays constant up to the edge, detail is removed, and the width of the blur is in mm."""
    item = phantoms[0]
    flat = {**item, "source": 0.7 * item["mask"].float()}
    assert torch.allclose(blur_source(flat, (4.0,) * 3), flat["source"], atol=1e-6)
    coarse, fine = blur_source(item, (4.0,) * 3), blur_source(item, (2.0,) * 3)
    assert not coarse[~item["mask"]].any()
    spread = [float(image[item["mask"]].std()) for image in (item["source"], coarse, fine)]
    assert spread[0] > 1.5 * spread[1] > 1.5 * spread[2]
    assert torch.equal(fine, blur_source(item, (4.0,) * 3, sigma_mm=16.0))


def test_another_brain_fills_the_mask_and_nothing_else(phantoms):
    """Every voxel of the mask takes a value of the other brain, even if that brain is smaller."""
    item, donor = phantoms[0], dict(phantoms[1])
    donor["mask"] = donor["mask"] & (torch.arange(16) < 9)
    donor["source"] = torch.where(donor["mask"], donor["source"].abs() + 1, 0.0)
    exchanged = exchange_source(item, donor)
    assert not exchanged[~item["mask"]].any()
    assert (exchanged[item["mask"]] >= 1).all()
    both = item["mask"] & donor["mask"]
    assert torch.equal(exchanged[both], donor["source"][both])


def test_channels_are_exchanged_and_blurred_independently(phantoms):
    """Each of several channels equals the result for that channel alone."""
    items = [{**item, "source": torch.cat([item["source"], item["source"] ** 2])} for item in phantoms.items]
    for channel in (slice(0, 1), slice(1, 2)):
        first, second = ({**item, "source": item["source"][channel]} for item in items[:2])
        assert torch.equal(exchange_source(*items[:2])[channel], exchange_source(first, second))
        assert torch.equal(blur_source(items[0], (4.0,) * 3)[channel], blur_source(first, (4.0,) * 3))


def test_another_subject_is_not_another_session(phantoms):
    """The next scan of another subject is found cyclically; a single subject has none."""
    scans = ["sub-1_ses-a", "sub-1_ses-b", "sub-2", "sub-3"]
    assert [another_subject(scans, index) for index in range(4)] == [2, 2, 3, 0]
    assert another_subject(["sub-1_ses-a", "sub-1_ses-b"], 1) is None


def test_scores_of_a_flow(flow, phantoms):
    """Each NLL is the bound under its source, the bits are below it; there is one explained share per level."""
    item, other = phantoms[0], phantoms[1]
    scores = likelihood(flow, item, other, voxel_mm=(4.0,) * 3, draws=2, steps=4, seed=0)
    target, side, mask = (item[name][None] for name in ("target", "side", "mask"))
    sources = {
        "nll_true": item["source"],
        "nll_wrong": exchange_source(item, other),
        "nll_blurred": blur_source(item, (4.0,) * 3),
    }
    for column, source in sources.items():

        def density(volumes, source=source):
            return torch.cat([flow.log_prob(volume[None], source[None], side) for volume in volumes])

        with torch.no_grad():
            bound = mask_bound(density, item["target"], item["mask"], flow.spec, draws=2, seed=0)
        assert scores[column] == pytest.approx(bound, rel=1e-4)
    assert len({round(scores[column], 6) for column in sources}) == 3
    shares = [scores[f"explained_level_{level}"] for level in (1, 2, 3)]
    np.testing.assert_allclose(shares, explained_variance(flow, target, item["source"][None], side, mask), rtol=1e-5)
    assert scores["bits_in_mask"] < scores["nll_true"] / log(2)
    assert scores["bits_slack"] > 0
    assert 1 <= scores["bits_effective_draws"] <= 2
    wrong_shares = [scores[f"explained_other_level_{level}"] for level in (1, 2, 3)]
    wrong = sources["nll_wrong"][None]
    np.testing.assert_allclose(wrong_shares, explained_variance(flow, target, wrong, side, mask), rtol=1e-5)
    assert len(scores) == 12


def test_a_single_subject_has_no_wrong_source(flow, phantoms):
    """Scores that need another subject are absent."""
    scores = likelihood(flow, phantoms[0], None, voxel_mm=(4.0,) * 3, draws=1, steps=1, seed=0)
    assert "nll_wrong" not in scores
    assert not any(name.startswith("explained_other") for name in scores)
    assert scores["nll_true"] != scores["nll_blurred"]


def test_a_flow_that_ignores_its_source_has_equal_nlls(phantoms):
    """An untrained relation gives the same NLL under all three sources, which differ in nothing else.

    A prior without a mean explains nothing, and has no share.
    """
    torch.manual_seed(0)
    spec = preset("dual_glow", steps=[1, 1, 1], hidden=[8, 8, 8], prior_mean=False, prior_scale=True)
    blind = DualFlow(spec, shape=tuple(phantoms[0]["source"].shape[1:]), side_features=1)
    batch = collate(phantoms.items)
    initialize_flow(blind, Batch(batch["target"], batch["source"], batch["side"], batch["mask"]))
    scores = likelihood(blind.eval(), phantoms[0], phantoms[1], voxel_mm=(4.0,) * 3, draws=1, steps=1, seed=0)
    assert scores["nll_true"] == scores["nll_wrong"] == scores["nll_blurred"]
    assert not any(name.startswith("explained") for name in scores)
