"""The U-Net baselines: training, start, cross-fitted inputs, size, and the map of the spread."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dualflow.baselines.linear_models import StackedBaseline
from dualflow.baselines.residual_density import ClosedFormDensity
from dualflow.baselines.unet import HalfUNet, HeteroscedasticUNet, UNet
from dualflow.errors import ShapeError
from dualflow.flows import stacked_fit
from dualflow.flows.local_linear_fit import RungTable
from dualflow.flows.objective import Batch

SHAPE = (12, 8, 8)


def two_scans() -> dict[str, torch.Tensor]:
    """Return a batch of two scans that differ in source and side value."""
    generator = torch.Generator().manual_seed(0)
    source, side = torch.rand(2, 1, *SHAPE, generator=generator), torch.tensor([[1.0], [torch.nan]])
    target = torch.sin(3 * source) + torch.tensor([0.3, -0.3]).view(2, 1, 1, 1, 1)
    mask = torch.rand(2, 1, *SHAPE, generator=generator) < 0.8
    return {"target": target, "source": source, "side": side, "mask": mask}


def test_unet_overfits_two_scans():
    """120 steps reduce the error inside the mask to less than a quarter, on a grid that needs padding."""
    torch.manual_seed(0)
    model, batch = UNet(SHAPE, 1, width=8), two_scans()
    objective = model.objective()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(120):
        optimiser.zero_grad()
        loss = objective(Batch(**batch))["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_the_half_resolution_unet_adds_a_smooth_correction():
    """It sees averages of 2x2x2 voxels alone, and what it adds is interpolated between them."""
    torch.manual_seed(0)
    model, batch = HalfUNet(SHAPE, 1, width=8), two_scans()
    torch.nn.init.normal_(model.network.output_block.conv.conv.weight)
    source = batch["source"]
    blocks = torch.nn.functional.interpolate(torch.nn.functional.avg_pool3d(source, 2), scale_factor=2)
    with torch.no_grad():
        correction, same = (model.point_estimate(image, batch["side"]) for image in (source, blocks))
    assert correction.std() > 0.1
    assert torch.allclose(correction, same, atol=1e-4)
    coarse = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool3d(correction, 2), size=SHAPE, mode="trilinear"
    )
    assert (correction - coarse).std() < 0.6 * correction.std()


def test_loss_is_the_error_of_the_point_estimate_inside_the_mask():
    """The loss is the mean absolute error of the point estimate inside the mask, averaged over the scans."""
    torch.manual_seed(0)
    model, batch = UNet(SHAPE, 1, width=8), two_scans()
    batch["mask"][1, ..., :4] = False
    errors = (model.point_estimate(batch["source"], batch["side"]) - batch["target"]).abs()
    expected = sum(error[mask].mean().item() for error, mask in zip(errors, batch["mask"], strict=True)) / 2
    assert model.objective()(Batch(**batch))["l1"].item() == pytest.approx(expected, rel=1e-5)


def six_scans() -> list[dict[str, torch.Tensor]]:
    """Return scans of two people with noise."""
    batch = two_scans()
    pairs = [{name: value[index % 2] for name, value in batch.items()} for index in range(6)]
    for pair in pairs:
        pair["target"] = pair["target"] + 0.2 * torch.randn(1, *SHAPE)
    return pairs


@pytest.mark.parametrize("kind", [UNet, HalfUNet, HeteroscedasticUNet])
def test_untrained_unet_is_the_closed_form(kind):
    """Before training the estimate is that of `stacked`, the mean of the default flow."""
    batch, pairs = two_scans(), six_scans()
    model, closed = kind(SHAPE, 1, width=8), StackedBaseline(SHAPE, 1)
    model.fit(pairs)
    closed.fit(pairs)
    estimates = [fitted.point_estimate(batch["source"], batch["side"]) for fitted in (model, closed)]
    assert torch.allclose(*estimates, atol=1e-5)


def test_untrained_heteroscedastic_unet_is_the_spread_density():
    """Before training its samples are those of the closed-form density, and its loss is that density's likelihood."""
    batch, pairs = two_scans(), six_scans()
    model, density = HeteroscedasticUNet(SHAPE, 1, width=8), ClosedFormDensity(SHAPE, 1, mean=StackedBaseline)
    for fitted in (model, density):
        fitted.fit(pairs)
    arguments = batch["source"], batch["side"], 3, 1.0
    with torch.no_grad():
        samples = [fitted.sample(*arguments, torch.Generator().manual_seed(0)) for fitted in (model, density)]
    assert torch.allclose(*samples, atol=1e-5)
    voxels = torch.distributions.Normal(density.point_estimate(*arguments[:2]), density.law.spread)
    nll = -voxels.log_prob(batch["target"])[batch["mask"]].mean()
    assert model.objective()(Batch(**batch))["nll"].item() == pytest.approx(nll.item(), rel=1e-4)


def test_the_spread_map_follows_the_source():
    """Trained on noise whose size is the source's, the factor is larger where the source is brighter."""
    torch.manual_seed(0)
    source = 0.1 + torch.rand(8, 1, *SHAPE)
    pairs = [
        {"source": s, "target": s * torch.randn_like(s), "side": torch.zeros(1), "mask": torch.ones_like(s).bool()}
        for s in source
    ]
    model = HeteroscedasticUNet(SHAPE, 1, width=8)
    model.fit(pairs)
    objective, optimiser = model.objective(), torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(80):
        optimiser.zero_grad()
        noisy = source * torch.randn(source.shape, generator=torch.Generator().manual_seed(step))
        terms = objective(Batch(noisy, source, torch.zeros(8, 1)))
        terms["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        _, factor = model.mean_and_factor(source[:1], torch.zeros(1, 1))
    assert torch.corrcoef(torch.stack([factor.flatten(), source[0].flatten()]))[0, 1] > 0.4
    assert objective.selection_score({"loss": 1.0, "nll": 2.0, "l1": 3.0}) == 2.0


def test_the_likelihood_of_a_moved_scan_has_a_moved_map():
    """As augmentation moves it; voxels outside the mask, whose spread may be 0 by then, do not matter."""
    model = HeteroscedasticUNet(SHAPE, 1, width=8)
    model.law.spread.copy_(torch.rand(SHAPE) + 0.5)
    item = {name: value[None] for name, value in six_scans()[0].items()}
    objective = model.objective()
    spread = torch.where(item["mask"], model.unit(), 0.0)
    own, given, twice = (objective(Batch(**item, spread=each))["nll"] for each in (None, spread, 2 * spread))
    assert own == given
    assert twice != own


def test_training_uses_cross_fitted_predictions(monkeypatch):
    """The prediction of `fit` for a scan does not depend on its target, has a larger error, and changes the output."""
    monkeypatch.setattr(stacked_fit, "stacking_weight", lambda *_: 0.5)
    monkeypatch.setattr(stacked_fit, "_fit_gain", lambda scans, *_: (torch.zeros(len(scans)), {}))
    ladder = [RungTable((0.7,), (1.0,), mirrored=True)]
    one_choice = partial(stacked_fit.fit_stacked_mean, ridges=[1.0], sigmas=[0.7], ladder=ladder)
    pairs = six_scans()
    # A larger change would change the choice of features, which all folds share.
    changed_pairs = [{**pairs[0], "target": pairs[0]["target"] + 0.02}, *pairs[1:]]
    model, other = UNet(SHAPE, 1, width=8), UNet(SHAPE, 1, width=8)
    folds = [0, 1, 2, 3, 4, 5]
    means, changed = model.fit(pairs, folds, one_choice), other.fit(changed_pairs, folds, one_choice)
    assert torch.allclose(means[0], changed[0], atol=1e-4)
    assert not torch.allclose(means[2], changed[2], atol=1e-3)
    item = {name: value[None] for name, value in pairs[0].items()}
    full = model.mean.point_estimate(item["source"], item["side"])
    inside = item["mask"]
    assert (means[0] - item["target"])[inside].abs().mean() > (full - item["target"])[inside].abs().mean()
    # A network that uses its inputs, unlike the zero correction at the start.
    torch.nn.init.normal_(model.network.output_block.conv.conv.weight)
    with torch.no_grad():
        objective = model.objective()
        cross_fitted, default, refitted = (
            objective(Batch(**item, mean=mean))["l1"] for mean in (means[0][None], None, full)
        )
    assert default == refitted
    assert cross_fitted != default


def test_odd_grid_is_refused():
    """An odd grid size raises ShapeError."""
    with pytest.raises(ShapeError, match="even"):
        UNet((8, 7, 8))
