"""The closed-form fit of a local linear regression against explicit least squares."""

from __future__ import annotations

import pytest
import torch
from regression_scans import SHAPE, SIDE, make_scans

from dualflow.errors import DataError, ShapeError
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.local_linear_fit import STEP, LocalLinearFit, Rung, RungTable, fit_local_linear
from dualflow.flows.voxel_domain import VoxelDomain
from dualflow.flows.voxel_features import IntensityFeatures, blur


@pytest.mark.parametrize("channels", [1, 2])
def test_local_coefficients_are_recovered(channels):
    """Targets that are linear in the features, with voxelwise coefficients, are predicted for new subjects."""
    truth = LocalLinear(SHAPE, SIDE, channels, design=IntensityFeatures())
    truth.coefficients.copy_(torch.randn(truth.coefficients.shape, generator=torch.Generator().manual_seed(5)))
    scans = make_scans(24, lambda x, s: truth(x[None], s[None])[0], noise=0.0, channels=channels)
    model = LocalLinear(SHAPE, SIDE, channels, design=IntensityFeatures())
    fit_local_linear(scans[:18], model, ridges=(1e-6, 1.0), sigmas=(0.0, 1.0))
    for scan in scans[18:]:
        error = (model(scan.source[None], scan.side[None])[0] - scan.target).abs()
        assert error[scan.mask].max() < 5e-3


def test_cross_fitted_predictions_equal_an_explicit_refit():
    """Subtracting the sums of a fold equals fitting without its scans."""
    scans = make_scans(12)
    options = {"ridges": (1.0,), "sigmas": (1.0,)}
    model, predictions, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), **options)
    refit = LocalLinear(SHAPE, SIDE)
    refit.side_mean.copy_(model.side_mean)
    fit = LocalLinearFit(refit, scans[0].mask[0], 1)
    for scan in scans:
        if scan.fold != 1:
            fit.add(scan._replace(fold=0))
    refit.coefficients.copy_(fit.coefficients(None, [Rung(1.0, 1.0)]))
    for scan, prediction in zip(scans, predictions, strict=True):
        equal = torch.allclose(refit(scan.source[None], scan.side[None])[0], prediction, atol=1e-4)
        assert equal == (scan.fold == 1)


def test_the_chosen_ridge_has_the_least_cross_fitted_error():
    """The RMSE from the sums equals that of the cross-fitted predictions, and the choice has the least."""
    scans = make_scans(9)
    model = LocalLinear(SHAPE, SIDE)
    _, _, chosen = fit_local_linear(scans, model, ridges=(0.01, 1.0, 100.0), sigmas=(0.5, 1.5))
    measured, sites = {}, VoxelDomain(scans[0].mask[0]).lattice(STEP)
    for ridge in (0.01, 1.0, 100.0):
        for sigma in (0.5, 1.5):
            _, predictions, result = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), ridges=(ridge,), sigmas=(sigma,))
            squares = [
                (prediction - scan.target)[scan.mask][sites].square()
                for scan, prediction in zip(scans, predictions, strict=True)
            ]
            measured[ridge, sigma] = float(torch.cat(squares).mean().sqrt())
            assert result["rmse"] == pytest.approx(measured[ridge, sigma], rel=1e-3)
    assert measured[chosen["ridge"], chosen["sigma"]] == pytest.approx(min(measured.values()))


def test_the_ridge_shrinks_to_the_global_fit():
    """Slopes are equal in all voxels with a huge ridge, and differ with a small one."""
    scans = make_scans(12)
    slopes = []
    for ridge in (1e-2, 1e7):
        model, _, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), ridges=(ridge,), sigmas=(0.5,))
        slopes.append(float(model.coefficients[1:, scans[0].mask[0]].std(dim=1).max()))
    assert slopes[0] > 1e-2
    assert slopes[1] < 1e-4


def test_a_larger_brain_is_predicted_like_its_neighbours():
    """Beyond the training masks a prediction continues, where it was 0 SUVR."""
    scans = make_scans(12, lambda x, s: 1.0 + 0.1 * x.sum(dim=0, keepdim=True), noise=0.0)
    kept = scans[0].mask.clone()
    kept[:, : kept.shape[1] // 2] = False
    smaller = [scan._replace(mask=kept) for scan in scans]
    model, _, _ = fit_local_linear(smaller, LocalLinear(SHAPE, SIDE), ridges=(1.0,), sigmas=(1.0,))
    beyond = torch.zeros_like(kept)
    beyond[:, kept.shape[1] // 2 - 1] = scans[0].mask[:, kept.shape[1] // 2 - 1]
    error = (model(scans[0].source[None], scans[0].side[None])[0] - scans[0].target)[beyond]
    assert beyond.any()
    assert error.abs().mean() < 0.2


def test_voxels_outside_the_mask_are_ignored():
    """Target values outside the mask do not change the fit, and the prediction is 0 where the source is."""
    scans = make_scans(8)
    altered = [scan._replace(target=torch.where(scan.mask, scan.target, 1e4)) for scan in scans]
    options = {"ridges": (1.0,), "sigmas": (1.0,)}
    first, _, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE), **options)
    second, _, _ = fit_local_linear(altered, LocalLinear(SHAPE, SIDE), **options)
    assert torch.equal(first.coefficients, second.coefficients)
    assert not first((scans[0].source * scans[0].mask)[None])[0][~scans[0].mask].any()


def test_unknown_side_value_counts_as_the_training_mean():
    """NaN gives the prediction of the mean value, also in the fit; None means that all values are unknown."""
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


def test_a_side_column_without_values_gives_finite_coefficients():
    """A column that is unknown in all scans counts as 0."""
    scans = [scan._replace(side=torch.tensor([1.0, torch.nan])) for scan in make_scans(8)]
    model, _, _ = fit_local_linear(scans, LocalLinear(SHAPE, SIDE))
    assert model.coefficients.isfinite().all()


def test_a_voxel_in_a_single_mask_borrows_from_its_neighbours():
    """A voxel in the mask of one scan only is predicted with a small error in the other scans."""
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
    """Cross-fitting needs two folds or more."""
    with pytest.raises(DataError, match=r"expected 2 folds .* train on scans of 2 subjects"):
        fit_local_linear(make_scans(4, folds=1), LocalLinear(SHAPE, SIDE))


def test_predictions_do_not_change_under_autocast():
    """Features and predictions stay in float32."""
    model, _, _ = fit_local_linear(scans := make_scans(6), LocalLinear(SHAPE, SIDE))
    expected = model(scans[0].source[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(scans[0].source[None]), expected)


def test_a_second_source_reduces_the_error():
    """If the target depends on two sources, a fit of both has a smaller error on new subjects."""
    scans = make_scans(30, channels=2)
    errors = []
    for count in (1, 2):
        subset = [scan._replace(source=scan.source[:count]) for scan in scans]
        model, _, _ = fit_local_linear(subset[:24], LocalLinear(SHAPE, SIDE, count))
        images = [model(scan.source[None], scan.side[None])[0] for scan in subset[24:]]
        errors.append(
            torch.stack([(i - s.target)[s.mask].abs().mean() for i, s in zip(images, subset[24:], strict=True)])
        )
    assert (errors[1] < 0.85 * errors[0]).all()


def test_a_wrong_grid_is_refused():
    """The error names the actual and the expected size."""
    with pytest.raises(ShapeError, match="expected"):
        LocalLinear(SHAPE, SIDE)(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ShapeError, match=r"\(1, 1, 8, 10, 8\); expected \[N, 2, 8, 10, 8\]"):
        LocalLinear(SHAPE, SIDE, 2)(torch.zeros(1, 1, *SHAPE))
    with pytest.raises(ShapeError, match="NaN where unknown"):
        LocalLinear(SHAPE, SIDE)(torch.zeros(1, 1, *SHAPE), torch.zeros(1, 5))


@pytest.mark.parametrize("step", [1, 2])
def test_mirrored_sums_are_those_of_reflected_people(step):
    """Adding every person's reflection gives the same sums as the mirrored smoothing of the people alone."""
    scans = make_scans(4, folds=2)
    alone, both = (LocalLinearFit(LocalLinear(SHAPE, SIDE), scans[0].mask[0], 2) for _ in range(2))
    for scan in scans:
        alone.add(scan)
        both.add(scan)
        both.add(scan._replace(**{name: getattr(scan, name).flip(1) for name in ("source", "target", "mask")}))
    for mirrored, doubled in zip(
        alone.smoothed(0.8, 1, mirrored=True, step=step), both.smoothed(0.8, 1, step=step), strict=True
    ):
        torch.testing.assert_close(mirrored, doubled, atol=1e-4, rtol=1e-4)


def test_a_mirrored_rung_helps_a_symmetric_law():
    """With few people a law that both hemispheres share is learnt better, and a rung that does not help is left out."""
    slope = blur(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2)), 1.0)
    slope = 1 + 2 * (slope + slope.flip(1)) / slope.std()
    scans = make_scans(12, lambda x, s: slope * x, noise=0.3)
    fit = LocalLinearFit(LocalLinear(SHAPE, SIDE, design=IntensityFeatures()), scans[0].mask[0], 3)
    for scan in scans:
        fit.add(scan)
    tables = [RungTable((0.4,), (0.1, 1.0, 10.0), mirrored=mirrored) for mirrored in (False, True)]
    errors = [fit.choose([table], step=1)[1] for table in tables]
    assert errors[1] < errors[0]
    ladder, rmse = fit.choose([tables[1], RungTable((0.4,), (100.0, 1e9))], step=1)
    assert [rung.mirrored for rung in ladder] == [True]
    assert rmse == pytest.approx(errors[1])


def test_a_choice_at_the_edge_of_its_table_is_reported(caplog):
    """A warning names the edge; a ridge that is as good as zero, or a single candidate, gives none."""
    scans = make_scans(9)
    fit_local_linear(scans, LocalLinear(SHAPE, SIDE), ridges=(1e-6, 1e-5), sigmas=(0.7,))
    assert "ridge 1e-05, at the edge of its candidates" not in caplog.text
    fit_local_linear(scans, LocalLinear(SHAPE, SIDE), ridges=(1.0,), sigmas=(0.7,))
    assert not caplog.records
    fit_local_linear(scans, LocalLinear(SHAPE, SIDE), ridges=(0.01, 0.02), sigmas=(0.7,))
    assert "ridge 0.02, at the edge of its candidates [0.01, 0.02]" in caplog.text
