"""Conditional means: the closed-form law against explicit least squares, and the network."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dualflow.errors import DataError, ShapeError
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.local_linear_fit import STRIDE, LocalLinearFit, RegressionScan, fit_local_linear, grouped_folds
from dualflow.flows.mean_models import MEANS, NetworkMean
from dualflow.flows.objective import ImageObjective
from dualflow.flows.voxel_features import IntensityFeatures, TissueFeatures, blur

SHAPE = (8, 10, 8)
SIDE = 2


def make_scans(
    count: int, law=None, *, seed: int = 0, noise: float = 0.05, folds: int = 3, channels: int = 1
) -> list[RegressionScan]:
    """Random smooth sources; the target is `law(source, side)` (default: nonlinear in all channels) plus noise."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[:, 1:-1, 1:-1, 1:-1] = True
    scans = []
    for index in range(count):
        source = (0.5 + blur(torch.randn(channels, *SHAPE, generator=generator), 0.7)).clamp(0.01, 1)
        side = torch.randn(SIDE, generator=generator)
        clean = torch.sin(3 * source).sum(dim=0, keepdim=True) + 0.1 * side[0] if law is None else law(source, side)
        target = clean + noise * torch.randn(1, *SHAPE, generator=generator)
        scans.append(RegressionScan(source, target, side, mask, index % folds))
    return scans


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_blur_is_a_gaussian_of_the_stated_width(sigma):
    """An impulse becomes a bell of unit mass whose standard deviation along each axis is sigma, unless discrete."""
    impulse = torch.zeros(33, 35, 37)
    impulse[16, 17, 18] = 1
    blurred = blur(impulse, sigma)
    profile = blurred.sum(dim=(0, 2))
    position = torch.arange(35) - 17.0
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    assert (profile * position**2).sum().sqrt() == pytest.approx(sigma, abs=0.04)
    assert torch.allclose(blur(torch.full((1, 5, 6, 7), 3.0), sigma), torch.tensor(3.0))


@pytest.mark.parametrize("channels", [1, 2])
def test_local_law_is_recovered(channels):
    """A law linear in the features whose coefficients vary from voxel to voxel is predicted for new people."""
    truth = LocalLinear(SHAPE, SIDE, channels, design=IntensityFeatures())
    truth.coefficients.copy_(torch.randn(truth.coefficients.shape, generator=torch.Generator().manual_seed(5)))
    scans = make_scans(24, lambda x, s: truth(x[None], s[None])[0], noise=0.0, channels=channels)
    model = LocalLinear(SHAPE, SIDE, channels, design=IntensityFeatures())
    fit_local_linear(scans[:18], model, ridges=(1e-6, 1.0), sigmas=(0.0, 1.0))
    for scan in scans[18:]:
        error = (model(scan.source[None], scan.side[None])[0] - scan.target).abs()
        assert error[scan.mask].max() < 5e-3


def test_cross_fitted_predictions_equal_an_explicit_refit():
    """Leaving a fold's sums out gives what fitting without those scans gives."""
    scans = make_scans(12)
    options = {"ridges": (1.0,), "sigmas": (1.0,)}
    model, predictions, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), **options)
    refit = LocalLinear(SHAPE, SIDE)
    refit.side_mean.copy_(model.side_mean)
    fit = LocalLinearFit(refit, scans[0].mask[0], 1)
    for scan in scans:
        if scan.fold != 1:
            fit.add(scan.source, scan.target, scan.side, scan.mask, 0)
    refit.coefficients.copy_(fit.coefficients(None, 1.0, 1.0))
    for scan, prediction in zip(scans, predictions, strict=True):
        same = torch.allclose(refit(scan.source[None], scan.side[None])[0], prediction, atol=1e-4)
        assert same == (scan.fold == 1)


def test_chosen_strength_has_the_least_cross_fitted_error():
    """The error read off the sums is the error of the cross-fitted predictions, and the least of the grid."""
    scans = make_scans(9)
    model = LocalLinear(SHAPE, SIDE)
    _, _, chosen = fit_local_linear(scans, model, ridges=(0.01, 1.0, 100.0), sigmas=(0.5, 1.5))
    measured = {}
    for ridge in (0.01, 1.0, 100.0):
        for sigma in (0.5, 1.5):
            _, predictions, found = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), ridges=(ridge,), sigmas=(sigma,))
            squares = [
                (prediction - scan.target)[scan.mask][::STRIDE].square()
                for scan, prediction in zip(scans, predictions, strict=True)
            ]
            measured[ridge, sigma] = float(torch.cat(squares).mean().sqrt())
            assert found["rmse"] == pytest.approx(measured[ridge, sigma], rel=1e-3)
    assert measured[chosen["ridge"], chosen["sigma"]] == pytest.approx(min(measured.values()))


def test_ridge_leads_from_the_voxel_to_the_whole_brain():
    """A huge ridge gives every voxel the same slopes; a small one lets them differ."""
    scans = make_scans(12)
    slopes = []
    for ridge in (1e-2, 1e7):
        model, _, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), ridges=(ridge,), sigmas=(0.5,))
        slopes.append(float(model.coefficients[1:, scans[0].mask[0]].std(dim=1).max()))
    assert slopes[0] > 1e-2
    assert slopes[1] < 1e-4


def test_only_masked_voxels_count_and_outside_is_background():
    """Values outside a scan's mask change nothing, and the prediction there is 0."""
    scans = make_scans(8)
    spoilt = [scan._replace(target=torch.where(scan.mask, scan.target, 1e4)) for scan in scans]
    options = {"ridges": (1.0,), "sigmas": (1.0,)}
    first, _, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), **options)
    second, _, _ = fit_local_linear(spoilt, LocalLinear(SHAPE, SIDE), **options)
    assert torch.equal(first.coefficients, second.coefficients)
    assert not first(scans[0].source[None])[0][~scans[0].mask].any()


def test_unknown_side_value_counts_as_the_training_mean():
    """NaN predicts what the mean value predicts, in training no NaN reaches the sums, and None is all unknown."""
    scans = make_scans(12)
    scans[3].side[0] = torch.nan
    known = torch.stack([scan.side for scan in scans]).nanmean(dim=0)
    model, predictions, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE))
    source = scans[0].source[None]
    unknown = torch.full((1, SIDE), torch.nan)
    assert all(prediction.isfinite().all() for prediction in predictions)
    assert torch.allclose(model(source, unknown), model(source, known[None]), atol=1e-6)
    assert torch.equal(model(source, unknown), model(source))
    assert (model(source, known[None] + 1) - model(source)).abs().max() > 0.02


def test_column_never_known_is_harmless():
    """A side column without any value leaves finite coefficients."""
    scans = [scan._replace(side=torch.tensor([1.0, torch.nan])) for scan in make_scans(8)]
    model, _, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE))
    assert model.coefficients.isfinite().all()


def test_voxel_seen_once_leans_on_the_others():
    """A voxel that only one scan's mask holds is predicted sensibly for the rest."""
    scans = make_scans(12)
    for scan in scans[1:]:
        scan.mask.data = scan.mask.clone()
        scan.mask[0, 1] = False
    scans[0] = scans[0]._replace(mask=make_scans(1)[0].mask)
    model, _, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE))
    fringe = scans[0].mask & ~scans[1].mask
    error = (model(scans[1].source[None], scans[1].side[None])[0] - scans[1].target).abs()
    assert error[fringe].mean() < 0.3


def test_fit_without_two_folds_is_refused():
    """Cross-fitting with a single fold has nothing to fit on."""
    with pytest.raises(DataError, match="2 folds"):
        fit_local_linear(make_scans(4, folds=1), LocalLinear(SHAPE, SIDE))


def test_grouped_folds_keep_a_person_together():
    """Scans of one person share a fold, and folds are of even size."""
    folds = grouped_folds([f"C{index // 2:02d}" for index in range(16)], 4)
    assert folds[::2] == folds[1::2]
    assert np.bincount(folds).tolist() == [4, 4, 4, 4]


def test_features_stay_exact_under_autocast():
    """Reduced precision around the law changes nothing."""
    model, _, _ = fit_local_linear(scans := make_scans(6), LocalLinear(SHAPE, SIDE))
    plain = model(scans[0].source[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(scans[0].source[None]), plain)


def test_feature_count_is_what_is_made():
    """A design's count is the number of maps that it makes, so that coefficients can be sized before fitting."""
    for design, side, channels in product((IntensityFeatures(), TissueFeatures()), (0, 3), (1, 2)):
        made = design(torch.rand(2, channels, *SHAPE), torch.zeros(2, side))
        assert made.shape == (2, design.count(side, channels), *SHAPE)


def test_a_further_source_adds_features_and_changes_none():
    """The features of the first source are what they are alone, and the constant stays the first of all."""
    design, source, side = TissueFeatures(), torch.rand(2, 2, *SHAPE), torch.rand(2, SIDE)
    both, alone = design(source, side), design(source[:, :1], side)
    assert all(any(torch.equal(one, other) for other in both.unbind(1)) for one in alone.unbind(1))
    assert torch.equal(both[:, 0], torch.ones_like(both[:, 0]))
    assert not torch.equal(design(source.flip(1), side), both)


def test_a_second_source_explains_what_the_first_does_not():
    """Where the target follows both, the law of two sources errs less on new people than that of one."""
    scans = make_scans(30, channels=2)
    errors = []
    for count in (1, 2):
        seen = [scan._replace(source=scan.source[:count]) for scan in scans]
        model, _, _ = fit_local_linear(seen[:24], LocalLinear(SHAPE, SIDE, count))
        images = [model(scan.source[None], scan.side[None])[0] for scan in seen[24:]]
        errors.append(
            torch.stack([(i - s.target)[s.mask].abs().mean() for i, s in zip(images, seen[24:], strict=True)])
        )
    assert (errors[1] < 0.85 * errors[0]).all()


def test_wrong_grid_is_refused():
    """A source of another grid is named with both sizes."""
    with pytest.raises(ShapeError, match="expected"):
        LocalLinear(SHAPE, SIDE)(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ShapeError, match=r"\(1, 1, 8, 10, 8\); expected \[N, 2, 8, 10, 8\]"):
        LocalLinear(SHAPE, SIDE, 2)(torch.zeros(1, 1, *SHAPE))
    with pytest.raises(ShapeError, match="NaN where unknown"):
        LocalLinear(SHAPE, SIDE)(torch.zeros(1, 1, *SHAPE), torch.zeros(1, 5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MEANS)
def test_every_mean_has_the_contract(name, channels):
    """One image like a source from sources and side, and a state dict that carries everything over."""
    torch.manual_seed(0)
    first, second = MEANS[name](SHAPE, SIDE, channels), MEANS[name](SHAPE, SIDE, channels)
    with torch.no_grad():
        for value in first.state_dict().values():
            value.copy_(torch.randn(value.shape))
    second.load_state_dict(first.state_dict())
    source, side = torch.rand(2, channels, *SHAPE), torch.tensor([[0.1, torch.nan], [torch.nan, torch.nan]])
    image = first(source, side)
    assert image.shape == (2, 1, *SHAPE)
    assert image.isfinite().all()
    assert torch.equal(image, second(source, side))


def test_network_starts_at_template_and_learns():
    """Untrained it is the template; trained, it reproduces scans that differ from it by side information."""
    torch.manual_seed(0)
    scans = make_scans(2, lambda x, s: torch.sin(3 * x) + 0.3 * s[0], noise=0.0)
    source, target, side, mask = (torch.stack(part) for part in list(zip(*scans, strict=True))[:4])
    network = NetworkMean(SHAPE, SIDE, width=8)
    network.set_template(target.mean(dim=0))
    assert torch.equal(network(source, side)[1], target.mean(dim=0))
    training = ImageObjective(network)
    optimiser = torch.optim.Adam(training.parameters(), lr=5e-3)
    first = training(target, source, side, mask)["loss"].item()
    for _ in range(50):
        optimiser.zero_grad()
        loss = training(target, source, side, mask)["loss"]
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.4 * first


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["network", "local_linear"])
def test_background_of_the_source_is_background(name, channels):
    """Where all of a person's sources are exactly 0, outside the own brain, the mean is 0 and leaves no residual."""
    mean = MEANS[name](SHAPE, SIDE, channels)
    with torch.no_grad():
        for value in mean.state_dict().values():
            value.fill_(0.3)
    source = torch.rand(1, channels, *SHAPE) + 0.1
    source[..., 2:4] = 0
    source[:, 1:, :, :, 6:] = 0  # one source alone may be 0 inside the brain
    image = mean(source)
    assert not image[..., 2:4].any()
    assert image[..., 4:].abs().min() > 0


def test_odd_grid_is_refused():
    """Halving needs even sizes."""
    with pytest.raises(ShapeError, match="even"):
        NetworkMean((8, 9, 8), SIDE)
