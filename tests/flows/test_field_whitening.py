"""FieldWhitening against dense matrices: white noise, kriging, and what the brain's edge changes."""

from __future__ import annotations

from math import exp

import pytest
import torch
from torch import Tensor

from dualflow.baselines.grid_kernel import GridKernel
from dualflow.flows import field_whitening
from dualflow.flows.field_whitening import LENGTHS, FieldWhitening

SHAPE = (12, 10, 8)
SHARES = torch.tensor([0.2, 0.5, 0.2, 0.1])


def fitted() -> FieldWhitening:
    """Return the whitening of a smooth field, in float64."""
    whitening = FieldWhitening().double()
    whitening.set_correlation(SHARES)
    return whitening


def ball() -> Tensor:
    """Return an ellipsoidal mask with holes, `[1, 1, D, H, W]`."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    holes = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.05
    return ((sum(axis.square() for axis in axes) < 0.9) & ~holes)[None, None]


def covariance(mask: Tensor) -> Tensor:
    """Return the covariance `[V, V]` of the field in the voxels of a mask."""
    kernel = GridKernel(SHAPE)
    kernel.weights.copy_(SHARES)
    return kernel.correlation(mask[0, 0].nonzero()).double()


def matrix(whitening: FieldWhitening, mask: Tensor) -> Tensor:
    """Return the matrix `[V, V]` by which the voxels of a mask are multiplied."""
    voxels = mask[0, 0].nonzero()
    units = torch.zeros(len(voxels), 1, *SHAPE, dtype=torch.float64)
    units[torch.arange(len(voxels)), 0, voxels[:, 0], voxels[:, 1], voxels[:, 2]] = 1
    return whitening(units, whitening.weights(mask))[0][:, 0, mask[0, 0]].T


def test_a_field_becomes_nearly_white_noise():
    """The divergence of the whitened field from white noise is below 0.01 nats per voxel; unwhitened it is large."""
    mask = ball()
    true, w = covariance(mask), matrix(fitted(), mask)
    white = w @ true @ w.T
    divergence = 0.5 * (white.trace() - len(white) - torch.linalg.slogdet(white)[1]) / len(white)
    assert 0 <= divergence < 0.01
    assert -0.5 * torch.linalg.slogdet(true)[1] / len(true) > 0.3


def test_gradients_are_those_of_the_matrix():
    """Both directions pass gradients, through holes and edges of the brain."""
    whitening, mask = fitted(), ball()
    w, context = matrix(whitening, mask), whitening.weights(mask)
    for function, expected in ((whitening, w), (whitening.inverse, torch.linalg.inv(w))):
        x = torch.randn(1, 1, *SHAPE, dtype=torch.float64, requires_grad=True)
        direction = torch.randn(len(w), dtype=torch.float64)
        (function(x, context)[0][mask] @ direction).backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad[mask], expected.T @ direction)


def test_a_voxel_with_few_neighbours_is_kriged():
    """With two voxels in the brain, the later one is the earlier one's share plus noise of the right scale."""
    mask = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    mask[0, 0, 4, 4, 4] = mask[0, 0, 4, 4, 5] = True  # the second is between voxels of the coarse lattice
    r = sum(float(share) * exp(-0.5 / length**2) for share, length in zip(SHARES[1:], LENGTHS, strict=True))
    expected = torch.tensor([[1.0, 0.0], [-r, 1.0]], dtype=torch.float64)
    expected[1] /= (1 - r**2) ** 0.5
    torch.testing.assert_close(matrix(fitted(), mask), expected, rtol=1e-3, atol=1e-6)


def test_voxels_outside_stay_and_predict_nothing():
    """Other values outside the brain change neither the voxels inside nor the log-determinant."""
    whitening, mask = fitted(), ball()
    context = whitening.weights(mask)
    x = torch.randn(1, 1, *SHAPE, dtype=torch.float64)
    other = torch.where(mask, x, x + 1)
    (z, log_det), (changed, same) = whitening(x, context), whitening(other, context)
    assert torch.equal(z[mask], changed[mask])
    assert torch.equal(changed[~mask], other[~mask])
    assert torch.equal(log_det, same)


def test_a_new_whitening_is_the_identity():
    """Before a fit a field is white noise."""
    whitening, x = FieldWhitening(), torch.randn(2, 1, *SHAPE)
    z, log_det = whitening(x, whitening.weights(torch.ones(2, 1, *SHAPE, dtype=torch.bool)))
    assert torch.equal(z, x)
    assert not log_det.any()


def test_masks_are_shared_by_repeated_volumes():
    """Volumes n, n + N, ... have the weights of mask n, as those of repeated conditions."""
    whitening, masks = fitted(), torch.cat([ball(), ~ball()])
    x = torch.randn(6, 1, *SHAPE, dtype=torch.float64)
    z, log_det = whitening(x, whitening.weights(masks))
    repeated = whitening.weights(masks.repeat(3, 1, 1, 1, 1))
    torch.testing.assert_close(z, whitening(x, repeated)[0])
    torch.testing.assert_close(log_det, whitening(x, repeated)[1])


def test_remembered_weights_are_those_of_the_correlation(monkeypatch):
    """Another correlation, set or loaded, gives other weights; forgetting to save memory changes none."""
    whitening, mask = fitted(), ball()
    first = whitening.weights(mask)
    monkeypatch.setattr(field_whitening, "REMEMBERED", 10)
    assert torch.equal(whitening.weights(~mask), fitted().weights(~mask))
    assert torch.equal(whitening.weights(mask), first)
    whitening.set_correlation(SHARES.flip(0))
    assert not torch.allclose(whitening.weights(mask), first)
    whitening.load_state_dict(fitted().state_dict())
    assert torch.equal(whitening.weights(mask), first)


@pytest.mark.parametrize("shape", [(2, 2, 2), (6, 4, 10)])
def test_small_and_odd_grids(shape):
    """A group may have no voxel; the inverse undoes the map."""
    whitening, x = fitted(), torch.randn(2, 1, *shape, dtype=torch.float64)
    context = whitening.weights(torch.ones(2, 1, *shape, dtype=torch.bool))
    torch.testing.assert_close(whitening.inverse(whitening(x, context)[0], context)[0], x)
