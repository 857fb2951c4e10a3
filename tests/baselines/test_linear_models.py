"""Linear baselines against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualflow.baselines.linear_models import LocalLinearBaseline, MeanImage
from dualflow.baselines.registry import BASELINES
from dualflow.errors import DataError

SHAPE = (8, 8, 8)


def make_pairs(count: int = 16, sides: int = 1, channels: int = 1) -> list[dict[str, torch.Tensor]]:
    """Return pairs with a target that is linear in intensities and side values, plus noise."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(count):
        source, side = torch.rand(channels, *SHAPE, generator=generator), torch.randn(sides, generator=generator)
        intensity = source.sum(dim=0, keepdim=True)
        target = 0.2 + 1.5 * intensity + 0.3 * side.sum() + 0.1 * torch.randn(1, *SHAPE, generator=generator)
        mask = torch.rand(1, *SHAPE, generator=generator) < 0.9
        pairs.append({"source": source, "target": target, "side": side, "mask": mask})
    return pairs


@pytest.mark.parametrize("channels", [1, 2])
def test_voxelwise_linear_is_least_squares_at_a_voxel(channels):
    """The prediction at a voxel equals numpy's least-squares fit to the scans whose mask includes the voxel."""
    pairs = make_pairs(40, channels=channels)
    model = BASELINES["voxelwise_linear"](SHAPE, 1, channels)
    model.ridges = (1e-6,)
    model.fit(pairs)
    voxel = (0, 3, 4, 5)
    inside = [pair for pair in pairs if pair["mask"][voxel]]
    rows = np.array([[1.0, *pair["source"][:, *voxel[1:]].tolist(), float(pair["side"][0])] for pair in inside])
    solution = np.linalg.lstsq(rows, np.array([float(pair["target"][voxel]) for pair in inside]), rcond=None)[0]
    new = make_pairs(41, channels=channels)[-1]
    predicted = float(model.point_estimate(new["source"][None], new["side"][None])[0][voxel])
    row = [1.0, *new["source"][:, *voxel[1:]].tolist(), float(new["side"][0])]
    assert predicted == pytest.approx(solution @ row, abs=2e-4)


def test_voxelwise_linear_works_with_few_scans():
    """With few scans the error on new scans is less than half of the mean image's."""
    pairs, new = make_pairs(5, sides=3)[:5], make_pairs(12, sides=3)[5:]
    errors = []
    for model in (BASELINES["voxelwise_linear"](SHAPE, 3), MeanImage(SHAPE)):
        model.fit(pairs)
        images = [model.point_estimate(pair["source"][None], pair["side"][None])[0] for pair in new]
        inside = [pair["mask"] & (images[0] != 0) for pair in new]
        differences = [
            (image - pair["target"])[mask].abs().mean() for image, pair, mask in zip(images, new, inside, strict=True)
        ]
        errors.append(torch.stack(differences).mean().item())
    assert errors[0] < 0.5 * errors[1]


def test_the_mean_image_alone_ignores_its_conditions():
    """Its tracked parameters leave them out."""
    assert [name for name, row in BASELINES.items() if not row.kind.is_conditional] == ["mean_image"]


def test_mean_image_averages_over_the_masks():
    """Each voxel is averaged over the scans whose mask includes it, and outside all masks over its neighbours."""
    pairs = make_pairs(4)
    for pair in pairs:
        pair["mask"][0, 0, 0, 0] = False
    model = MeanImage(SHAPE)
    model.fit(pairs)
    image = model.point_estimate(torch.zeros(2, 1, *SHAPE))
    voxel = (0, 2, 2, 2)
    expected = np.mean([float(pair["target"][voxel]) for pair in pairs if pair["mask"][voxel]])
    assert image.shape == (2, 1, *SHAPE)
    assert float(image[1][voxel]) == pytest.approx(expected, rel=1e-5)
    neighbours = image[0, 0, :2, :2, :2].flatten()[1:]
    assert float(image[0, 0, 0, 0, 0]) == pytest.approx(float(neighbours.mean()), rel=1e-4)


def test_no_pairs_are_refused():
    """An empty training set raises DataError."""
    for baseline in (MeanImage, LocalLinearBaseline):
        with pytest.raises(DataError, match="training"):
            baseline(SHAPE, 1).fit([])


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_the_protocol(name, images):
    """Fitted to two sources, or to one with its detail, and loaded, it gives the same finite image per scan."""
    torch.manual_seed(0)
    pairs = make_pairs(8, sides=2, channels=2)
    first, second = BASELINES[name](SHAPE, 2, images), BASELINES[name](SHAPE, 2, images)
    first.fit(pairs)
    second.load_state_dict(first.state_dict())
    source = torch.stack([pair["source"] for pair in pairs[:2]])
    side = torch.tensor([[torch.nan, 0.4], [torch.nan, torch.nan]])
    with torch.no_grad():
        image = first.point_estimate(source, side)
        assert image.shape == (2, 1, *SHAPE)
        assert image.isfinite().all()
        assert torch.equal(image, second.point_estimate(source, side))
        assert torch.equal(first.point_estimate(source[1:], side[1:]), first.point_estimate(source[1:]))


@pytest.mark.parametrize("baseline", ["voxelwise_linear", "local_linear"])
def test_columns_of_one_category_may_be_collinear(baseline):
    """Collinear one-hot columns give the right effect for known side values, and its mean for unknown ones."""
    pairs = make_pairs(16)
    for index, pair in enumerate(pairs):
        pair["side"] = torch.tensor([1.0, 0.0] if index % 2 else [0.0, 1.0])
        pair["target"] = 1.5 * pair["source"] + 0.3 * pair["side"][0]
    model = BASELINES[baseline](SHAPE, 2)
    model.fit(pairs)
    source = pairs[0]["source"][None]
    images = [model.point_estimate(source, torch.tensor([side])) for side in ([1.0, 0.0], [0.0, 1.0])]
    difference = (images[0] - images[1]).mean().item()
    assert difference == pytest.approx(0.3, abs=0.05)
    unknown = model.point_estimate(source) - images[1]
    assert unknown.mean().item() == pytest.approx(0.15, abs=0.05)
