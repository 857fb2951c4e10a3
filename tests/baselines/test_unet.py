"""The U-Net baseline: training, initial estimate, cross-fitted inputs and size."""

from __future__ import annotations

import pytest
import torch

from dualflow.baselines.unet import UNet, width_for
from dualflow.errors import ShapeError

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
        loss = objective(**batch)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_loss_is_the_error_of_the_point_estimate_inside_the_mask():
    """The loss is the mean absolute error of the point estimate inside the mask."""
    torch.manual_seed(0)
    model, batch = UNet(SHAPE, 1, width=8), two_scans()
    error = (model.point_estimate(batch["source"], batch["side"]) - batch["target"]).abs()[batch["mask"]].mean()
    assert model.objective()(**batch)["l1"].item() == pytest.approx(error.item(), rel=1e-5)


@pytest.mark.parametrize("parameters", [60_000, 200_000, 300_000, 1_000_000, 5_000_000])
def test_width_for_matches_the_number_of_parameters(parameters):
    """The network of the returned width has the requested number of parameters within 20 %."""
    model = UNet(SHAPE, 3, width=width_for(parameters, 3))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(parameters, rel=0.2)


def test_untrained_unet_is_the_template():
    """Before training the estimate is the mean of the training targets."""
    batch = two_scans()
    pairs = [{name: batch[name][index] for name in batch} for index in range(2)]
    model = UNet(SHAPE, 1, width=8)
    model.fit(pairs)
    image = model.point_estimate(batch["source"], batch["side"])
    both = batch["mask"].all(dim=0)
    assert torch.allclose(image[0][both], batch["target"].mean(dim=0)[both], atol=1e-6)


def test_training_uses_cross_fitted_linear_predictions():
    """The prediction of `fit` for a scan does not depend on its target, has a larger error, and changes the output."""
    torch.manual_seed(0)
    batch = two_scans()
    pairs = [{name: value[index % 2] for name, value in batch.items()} for index in range(6)]
    for pair in pairs:
        pair["target"] = pair["target"] + 0.2 * torch.randn(1, *SHAPE)
    changed_pairs = [{**pairs[0], "target": pairs[0]["target"] + 5}, *pairs[1:]]
    model, other = UNet(SHAPE, 1, width=8), UNet(SHAPE, 1, width=8)
    for linear in (model.voxelwise, other.voxelwise):
        linear.ridges = (1.0,)
    folds = [0, 1, 2, 3, 4, 5]
    means, changed = model.fit(pairs, folds), other.fit(changed_pairs, folds)
    assert torch.allclose(means[0], changed[0], atol=1e-4)
    assert not torch.allclose(means[1], changed[1], atol=1e-2)
    item = {name: value[None] for name, value in pairs[0].items()}
    full = model.voxelwise.point_estimate(item["source"], item["side"])
    inside = item["mask"]
    assert (means[0] - item["target"])[inside].abs().mean() > (full - item["target"])[inside].abs().mean()
    # The correction starts at zero, so the linear prediction has no effect before the last layer is set.
    torch.nn.init.normal_(model.network.output_block.conv.conv.weight)
    with torch.no_grad():
        objective = model.objective()
        cross_fitted, default, refitted = (objective(**item, mean=mean)["l1"] for mean in (means[0][None], None, full))
    assert default == refitted
    assert cross_fitted != default


def test_odd_grid_is_refused():
    """An odd grid size raises ShapeError."""
    with pytest.raises(ShapeError, match="even"):
        UNet((8, 7, 8))
