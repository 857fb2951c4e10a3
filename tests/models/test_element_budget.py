"""A model is built within the budget of its file, and no tensor beyond it is allocated."""

import pytest
import torch

from dualflow.errors import CheckpointError
from dualflow.models.element_budget import ElementBudget

HUGE = 1 << 40  # numbers: 4 TiB, which fail differently if they are allocated


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(HUGE),
        lambda: torch.zeros((HUGE // 2, 2)),
        lambda: torch.ones(size=(2, HUGE // 2)),
        lambda: torch.rand(torch.Size([HUGE])),
        lambda: torch.randn(2, HUGE),
        lambda: torch.eye(HUGE // 2, 2),
        lambda: torch.full((HUGE,), 1.0),
        lambda: torch.nn.Conv3d(HUGE // 2**12, 2**12, 1),
        lambda: torch.nn.Linear(HUGE // 2**12, 2**12),
    ],
)
def test_what_exceeds_the_budget_is_not_allocated(allocate):
    """All ways of stating a size, and the layers of torch."""
    with ElementBudget(1000), pytest.raises(CheckpointError, match="larger model than its 1,000 numbers of weights"):
        allocate()


def test_the_budget_is_of_all_tensors_together():
    """Many tensors of a moderate size are refused as one large tensor is."""
    with ElementBudget(2**20):
        for _ in range(3):
            torch.zeros(2**20)
        with pytest.raises(CheckpointError):
            torch.zeros(1)


def test_tensors_within_the_budget_are_those_without_it():
    """Nothing but the sizes is looked at."""
    torch.manual_seed(0)
    with ElementBudget(100):
        layer = torch.nn.Conv3d(2, 3, 3)
        identity = torch.eye(3)
    torch.manual_seed(0)
    assert torch.equal(layer.weight, torch.nn.Conv3d(2, 3, 3).weight)
    assert torch.equal(identity, torch.eye(3))
