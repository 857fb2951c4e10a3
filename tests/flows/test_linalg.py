"""Batched solves and log-determinants are right with several threads; eigenvectors have one sign."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.actnorm import ActNorm
from dualflow.flows.linalg import log_abs_det, solve, with_fixed_signs
from dualflow.flows.mixing import InvertibleMixing, NormalisedMixing, random_rotations


@pytest.fixture(autouse=True)
def _two_threads():
    """Use two threads, with which torch's batched LU is wrong."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [3, 200, 256])
def test_solves_and_determinants(size):
    """The solution solves each system, and log-determinants equal those of single matrices."""
    torch.manual_seed(0)
    matrices = torch.eye(size) + 0.3 * torch.softmax(torch.randn(3, 2, size, size), -1)
    matrices, right = matrices.double(), torch.randn(3, 2, size, 4).double()
    torch.testing.assert_close(matrices @ solve(matrices, right), right)
    single = torch.stack([torch.linalg.slogdet(matrix)[1] for matrix in matrices.flatten(0, 1)]).view(3, 2)
    torch.testing.assert_close(log_abs_det(matrices), single)


def test_wide_mixing_inverts():
    """A mixing of 512 channels, as at the coarsest of four levels, inverts in float32."""
    torch.manual_seed(0)
    mixing = NormalisedMixing(ActNorm(512), InvertibleMixing(random_rotations(512, 1, closing=False)[0]))
    x = torch.randn(2, 512, 2, 2, 2)
    torch.testing.assert_close(mixing.inverse(mixing(x)[0])[0], x, rtol=1e-3, atol=1e-4)


def test_eigenvectors_have_one_sign():
    """Whatever the signs that LAPACK gives, the largest entry of each is positive."""
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(5, 5))[0][:, :3]
    fixed = with_fixed_signs(vectors)
    assert torch.equal(fixed, with_fixed_signs(vectors * torch.tensor([1.0, -1.0, -1.0])))
    assert (fixed.max(dim=0).values == vectors.abs().max(dim=0).values).all()
    assert torch.equal(fixed.abs(), vectors.abs())
