"""The exact density of errors, against dense covariance matrices, SciPy and the law's own samples."""

import numpy as np
import pytest
import torch
from region_cohort import SHAPE, region_labels, region_people
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from dualflow.baselines import region_law
from dualflow.baselines.residual_law import ResidualLaw
from dualflow.baselines.residual_likelihood import log_density
from dualflow.baselines.residuals import ResidualScans

INSIDE = region_labels() > 0
PART = INSIDE & (torch.arange(SHAPE[2]) % 3 > 0)
"""A mask that lacks voxels of every region."""
PERSON = 0.5 * INSIDE[None, None].float(), torch.tensor([[0.3, 1.0]])


@pytest.fixture(scope="module")
def law():
    """A law with person scales and a mixture of two components."""
    people = region_people(100)
    images = [(1 + person["source"]) * person["mask"] for person in people]
    fitted = ResidualLaw(SHAPE, 2, regions=4, person_scale=True, components=2)
    fitted.set_regions(region_labels())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_law, "STARTS", 1)
        fitted.fit(ResidualScans(people, images, [index % 4 for index in range(100)]))
    assert fitted.regions.mixture(torch.tensor([0.3, 1.0, 1.0, 1.0]))[0].exp().min() > 0.2
    return fitted


def dense_components(law, mask):
    """Weights, means and covariances of the errors in a mask, from matrices over the whole grid."""
    units = torch.eye(INSIDE.numel()).view(-1, *SHAPE)
    correlation = law.kernel.apply(units).flatten(1).double()
    averages = law.region_means(units).T.double()
    spread = law.interpolate(torch.eye(4)).flatten(1).T.double()
    keep = torch.eye(INSIDE.numel(), dtype=torch.float64) - spread @ averages
    deviation = law.deviation.flatten().double()
    voxel_scale, region_scale = (float(scale) for scale in law.scales(*PERSON))
    field = voxel_scale**2 * keep @ (deviation[:, None] * correlation * deviation) @ keep.T
    loadings = region_scale * spread @ torch.diag(law.region_deviation.double())
    loadings = loadings @ (law.regions.vectors * law.regions.deviations).double()
    log_weights, means, covariances = law.regions.mixture(torch.tensor([0.3, 1.0, 1.0, 1.0]))
    chosen = mask.flatten()
    for log_weight, mean, covariance in zip(log_weights, means, covariances, strict=True):
        full = torch.eye(4, dtype=torch.float64)
        full[: len(mean), : len(mean)] = covariance
        centre = torch.zeros(4, dtype=torch.float64)
        centre[: len(mean)] = mean
        total = field + loadings @ full @ loadings.T
        yield float(log_weight), (loadings @ centre)[chosen].numpy(), total[chosen][:, chosen].numpy()


@pytest.mark.parametrize("mask", [INSIDE, PART], ids=["whole", "part"])
def test_the_density_is_that_of_the_dense_mixture(law, mask):
    """In the whole brain and in a part of it, whose errors have the marginal law."""
    error = law.sample(*PERSON, 1, torch.Generator().manual_seed(3))[0, 0, 0]
    values = error[mask].double().numpy()
    terms = [
        weight + multivariate_normal(mean, covariance, allow_singular=True).logpdf(values)
        for weight, mean, covariance in dense_components(law, mask)
        if weight > -100
    ]
    assert log_density(law, error, mask, *PERSON) == pytest.approx(logsumexp(terms), rel=1e-4)


def test_samples_have_the_density(law):
    """The mean square of whitened samples is 1 per voxel, and another law of the regions describes them worse."""
    samples = law.sample(*PERSON, 200, torch.Generator().manual_seed(1))[:, 0, 0]
    densities = np.array([log_density(law, error, PART, *PERSON) for error in samples])
    covariance = max(dense_components(law, PART), key=lambda part: part[0])[2]
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    # Neither the choice of a component (at most log 2) nor its covariance in a few of the directions matters here.
    assert -densities.mean() == pytest.approx(entropy, abs=0.02 * PART.sum())
    single = ResidualLaw(SHAPE, 2, regions=4, person_scale=True)
    single.load_state_dict({
        name: value if name.split(".")[-1] not in ("means", "roots", "gate") else single.state_dict()[name]
        for name, value in law.state_dict().items()
    })  # fmt: skip
    others = np.array([log_density(single, error, PART, *PERSON) for error in samples])
    gain = densities - others
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))


def test_dependent_voxels_have_no_density(law):
    """Without independent noise, voxels of a smooth field determine each other up to rounding."""
    smooth = ResidualLaw(SHAPE, 2, regions=4, person_scale=True, components=2)
    smooth.load_state_dict(law.state_dict())
    smooth.kernel.weights.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert np.isnan(log_density(smooth, torch.zeros(SHAPE), INSIDE, *PERSON))
