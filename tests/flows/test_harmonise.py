"""Harmonisation of intensities."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.harmonise import HARMONISATIONS, LEVELS, Harmonise, mapped, quantiles
from dualflow.flows.voxel_features import blur

SHAPE = (20, 22, 20)


def brain(seed: int, channels: int = 1) -> torch.Tensor:
    """Return a source `[C, D, H, W]` with two tissues inside an ellipsoid, at .4 and .8, and 0 outside."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    tissue = blur(torch.randn(channels, *SHAPE, generator=generator), 1.2)
    return (0.6 + 0.2 * torch.tanh(40 * tissue) + 0.02 * torch.randn(channels, *SHAPE, generator=generator)) * inside


def fitted(row: int, channels: int = 1) -> Harmonise:
    """Return a harmonisation by one row of the candidates, fitted to eight brains."""
    return Harmonise(channels).fit([brain(seed, channels) for seed in range(8)], [row] * channels)


@pytest.mark.parametrize("row", range(1, len(HARMONISATIONS)))
def test_a_new_contrast_is_undone(row):
    """A monotone change of the intensities of a scan is mostly removed."""
    harmonise, source = fitted(row), brain(20)
    changed = source.sqrt()
    before = (changed - source).abs().mean()
    after = (harmonise(changed[None]) - harmonise(source[None])).abs().mean()
    assert after < 0.2 * before


def test_a_smooth_field_is_divided_out_by_the_local_level():
    """The bright band removes a part of a multiplicative field that the histogram alone leaves."""
    source = brain(20)
    field = torch.linspace(0.85, 1.15, SHAPE[1])[:, None].expand(SHAPE)
    changes = []
    for row in (1, 2):
        harmonise = fitted(row)
        changes.append((harmonise((source * field)[None]) - harmonise(source[None])).abs().mean())
    assert changes[1] < 0.75 * changes[0]


def test_no_harmonisation_changes_nothing():
    """The first candidate returns the source; each channel has its own."""
    source = brain(20, channels=2)
    assert torch.equal(fitted(0, 2)(source[None])[0], source)
    harmonise = Harmonise(2).fit([brain(seed, 2) for seed in range(4)], [0, 1])
    output = harmonise(source[None])[0]
    assert torch.equal(output[0], source[0])
    assert not torch.equal(output[1], source[1])


def test_the_background_stays_zero():
    """Outside the brain mask every candidate returns 0; a scan without a brain gives 0, not NaN."""
    source = brain(20) + 0.1 * (brain(20) != 0)
    for row in range(len(HARMONISATIONS)):
        output = fitted(row)(torch.stack([source, torch.zeros_like(source)]))
        assert not output[0][source == 0].any()
        assert not output[1].any()


def test_the_map_is_linear_between_quantiles_and_shifts_outside():
    """Values beyond the outer quantiles keep their distance from them, so that bright lesions stay bright."""
    at, to = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 3.0])
    values = torch.tensor([-0.5, 0.0, 0.5, 1.5, 2.0, 2.25])
    assert mapped(values, at, to).tolist() == pytest.approx([-0.5, 0.0, 1.0, 2.5, 3.0, 3.25])


def test_quantiles_are_those_of_the_brain():
    """Background does not count."""
    source = brain(3)
    expected = torch.quantile(source[source != 0], LEVELS)
    assert torch.allclose(quantiles(source)[0], expected)


@pytest.mark.parametrize("row", range(len(HARMONISATIONS)))
def test_the_detail_follows_the_slope_of_the_intensities(row):
    """A small detail is scaled by the derivative of the harmonised intensity, and the image does not depend on it."""
    harmonise, source = fitted(row), brain(20).sqrt()
    inside = source != 0
    image, detail = harmonise.scan(source, 1e-3 * inside)
    assert torch.equal(image, harmonise(source[None])[0])
    assert not detail[~inside].any()
    order = source[inside].argsort()[500:-500]
    slope = detail[inside][order].mean() / 1e-3
    rise = (image[inside][order[-500:]].mean() - image[inside][order[:500]].mean()) / (
        source[inside][order[-500:]].mean() - source[inside][order[:500]].mean()
    )
    assert slope == pytest.approx(float(rise), rel=0.35)
    assert harmonise.scan(source)[1] is None
