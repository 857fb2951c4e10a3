"""The fit of a stacked mean: cross-fitted, never worse than the local linear regression, and better where it can be."""

from __future__ import annotations

import pytest
import torch
from regression_scans import SHAPE, SIDE, make_scans

from dualflow.errors import DataError, ShapeError
from dualflow.flows import design_choice
from dualflow.flows import stacked_fit as module
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.local_linear_fit import RungTable, fit_local_linear
from dualflow.flows.regression_scans import RegressionScan
from dualflow.flows.stacked_fit import fit_stacked_mean, stacking_weight
from dualflow.flows.stacked_mean import StackedMean
from dualflow.flows.voxel_features import blur, soft_tissue


def rmse(images, scans) -> float:
    """Return the root mean squared error inside the masks."""
    squares = [(image - scan.target)[scan.mask].square() for image, scan in zip(images, scans, strict=True)]
    return float(torch.cat(squares).mean().sqrt())


@pytest.mark.parametrize("channels", [1, 2])
def test_it_is_fitted_and_restored(channels):
    """Cross-fitted images are finite, and a model with the same state predicts the same."""
    scans = make_scans(12, channels=channels)
    scans[2].side[1] = torch.nan
    model, images, facts = fit_stacked_mean(scans, StackedMean(SHAPE, SIDE, channels))
    assert all(image.isfinite().all() and image.shape == (1, *SHAPE) for image in images)
    assert 0 <= facts["weight"] <= 1
    copy = StackedMean(SHAPE, SIDE, channels)
    copy.load_state_dict(model.state_dict())
    source, side = scans[0].source[None], torch.full((1, SIDE), torch.nan)
    assert torch.equal(copy(source, side), model(source))


def test_scanners_with_their_own_contrast_are_harmonised():
    """If scanners change the contrast, the stacked mean has a smaller error than the local regression."""
    scans = make_scans(40, noise=0.02)
    scans = [scan._replace(source=scan.source ** (0.6 + 0.2 * (index % 5))) for index, scan in enumerate(scans)]
    stacked, images, _ = fit_stacked_mean(scans[:30], StackedMean(SHAPE, SIDE))
    plain, plain_images, _ = fit_local_linear(scans[:30], LocalLinear(SHAPE, SIDE))
    assert rmse(images, scans[:30]) < 0.95 * rmse(plain_images, scans[:30])
    errors = [
        rmse([mean(s.source[None], s.side[None])[0] for s in scans[30:]], scans[30:]) for mean in (stacked, plain)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_a_target_does_not_enter_its_own_prediction(monkeypatch):
    """With fixed choices, another target of a scan changes the images of the other folds only."""
    monkeypatch.setattr(module, "stacking_weight", lambda *_: 0.5)
    options = {"ridges": (1.0,), "sigmas": (1.1,), "ladder": (RungTable((1.1,), (3.0,), mirrored=True),)}
    scans = make_scans(12)
    changed = [scan._replace(target=scan.target * 1.02) if index == 1 else scan for index, scan in enumerate(scans)]
    results = [fit_stacked_mean(data, StackedMean(SHAPE, SIDE), **options)[1:] for data in (scans, changed)]
    choices = [
        [facts[name] for name in ("harmonisation", "contrast", "abnormality", "gain_weight")] for _, facts in results
    ]
    assert choices[0] == choices[1]
    for index, (before, after) in enumerate(zip(*(images for images, _ in results), strict=True)):
        assert torch.allclose(before, after, atol=1e-6) == (index % 3 == 1)


def test_a_scan_is_not_compared_with_scans_of_the_same_person(monkeypatch):
    """The abnormality of a training scan is relative to the scans of others."""
    groups = []
    compare = design_choice.deviations_from_others

    def recorded(usual, images, subjects):
        groups.append(list(subjects))
        return compare(usual, images, subjects)

    monkeypatch.setattr(design_choice, "deviations_from_others", recorded)
    scans = [scan._replace(subject=index // 2, fold=index // 2 % 3) for index, scan in enumerate(make_scans(12))]
    fit_stacked_mean(scans, StackedMean(SHAPE, SIDE))
    assert groups == [[index // 2 for index in range(12)]]


def test_the_weight_is_the_best_mixture():
    """It is 1 if the rich images are the targets, 0 if they are noise or equal, and between for a noisy half."""
    scans = make_scans(4)
    plain = [scan.target + 0.1 * torch.randn(1, *SHAPE) for scan in scans]
    assert stacking_weight(plain, [scan.target for scan in scans], scans) == pytest.approx(1)
    assert stacking_weight(plain, [image + torch.randn(1, *SHAPE) for image in plain], scans) < 0.03
    assert stacking_weight(plain, plain, scans) == 0
    other = [scan.target + 0.1 * torch.randn(1, *SHAPE) for scan in scans]
    assert stacking_weight(plain, other, scans) == pytest.approx(0.5, abs=0.1)


def test_without_weight_and_gain_it_is_the_local_regression():
    """The untrained weight is 0."""
    scans = make_scans(9)
    model = StackedMean(SHAPE, SIDE)
    fit_local_linear(scans, model.plain)
    source, side = scans[0].source[None], scans[0].side[None]
    assert torch.equal(model(source, side), model.plain(source, side))


def test_one_fold_is_refused():
    """Cross-fitting needs two folds or more."""
    with pytest.raises(DataError, match=r"expected 2 folds .* train on scans of 2 subjects"):
        fit_stacked_mean(make_scans(4, folds=1), StackedMean(SHAPE, SIDE))


def mixtures(count: int) -> list[RegressionScan]:
    """Return scans whose target depends on the mean of a function of the intensities within a voxel."""
    scans = []
    for index, scan in enumerate(make_scans(count)):
        generator = torch.Generator().manual_seed(index)
        detail = blur(torch.rand(1, *SHAPE, generator=generator), 0.7) * 0.4 * (scan.source != 0)
        uptake = blur(soft_tissue(scan.source[None], detail[None])[0, 2:3], 0.8)
        target = uptake + 0.02 * torch.randn(1, *SHAPE, generator=generator)
        scans.append(scan._replace(source=torch.cat([scan.source, detail]), target=target))
    return scans


def test_detail_is_used_where_it_helps():
    """If the target follows the intensities within a voxel, the fit uses the detail and predicts better."""
    scans = mixtures(30)
    model, images, facts = fit_stacked_mean(scans, StackedMean(SHAPE, SIDE))
    without = [scan._replace(source=scan.source[:1]) for scan in scans]
    _, plain_images, plain_facts = fit_stacked_mean(without, StackedMean(SHAPE, SIDE))
    assert facts["detail"]
    assert "detail" not in plain_facts
    assert rmse(images, scans) < 0.9 * rmse(plain_images, scans)
    copy = StackedMean(SHAPE, SIDE)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(scans[0].source[None]), model(scans[0].source[None]))
    with pytest.raises(ShapeError, match="expected 2: the regression was fitted with the detail"):
        model(scans[0].source[None, :1])


def test_detail_without_information_is_left_out():
    """If the target does not follow the intensities within a voxel, the fit leaves the detail out."""
    noise = torch.Generator().manual_seed(0)
    scans = [
        scan._replace(source=torch.cat([scan.source, 0.4 * torch.rand(1, *SHAPE, generator=noise)]))
        for scan in make_scans(30)
    ]
    model, _, facts = fit_stacked_mean(scans, StackedMean(SHAPE, SIDE))
    assert not facts["detail"]
    source = scans[0].source[None]
    assert torch.equal(model(source), model(source[:, :1]))
