"""Solves and log-determinants of several matrices are right however many threads there are."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.actnorm import ActNorm
from dualflow.flows.linalg import log_abs_det, solve
from dualflow.flows.mixing import InvertibleMixing, NormalisedMixing, random_rotations


@pytest.fixture(autouse=True)
def _two_threads():
    """Where torch's own are wrong."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [3, 200, 256])
def test_solves_and_determinants(size):
    """The product gives the right side back, and determinants are those of the matrices one by one."""
    torch.manual_seed(0)
    matrices = torch.eye(size) + 0.3 * torch.softmax(torch.randn(3, 2, size, size), -1)
    matrices, right = matrices.double(), torch.randn(3, 2, size, 4).double()
    torch.testing.assert_close(matrices @ solve(matrices, right), right)
    single = torch.stack([torch.linalg.slogdet(one)[1] for one in matrices.flatten(0, 1)]).view(3, 2)
    torch.testing.assert_close(log_abs_det(matrices), single)


def test_a_wide_mixing_inverts():
    """As wide as the coarsest of four levels."""
    torch.manual_seed(0)
    mixing = NormalisedMixing(ActNorm(512), InvertibleMixing(random_rotations(512, 1, closing=False)[0]))
    x = torch.randn(2, 512, 2, 2, 2)
    torch.testing.assert_close(mixing.inverse(mixing(x)[0])[0], x, rtol=1e-3, atol=1e-4)
