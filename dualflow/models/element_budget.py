"""A limit of the numbers that a model may allocate while it is built, because its card may claim any size.

The meta device would tell the sizes as well, but its first normal draw or decomposition imports torch's compiler, which
takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dualflow.errors import CheckpointError

# What a constructor allocates, from its positional arguments: `zeros(2, 3)` and `zeros((2, 3))` are the same.
_SIZED_BY_ALL = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye}
_SIZED_BY_FIRST = {torch.full}


class ElementBudget(TorchFunctionMode):
    """Refuse to allocate more numbers than a file of weights accounts for, while the context is entered.

    Args:
        elements: the numbers in the file. A model may allocate twice as many, because initial values take some too.

    Raises:
        CheckpointError: the next tensor would exceed the budget; it is not allocated.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.left = elements, 2 * elements + 2**20

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what a constructor is about to allocate, then call it."""
        kwargs = kwargs or {}
        if func in _SIZED_BY_ALL or func in _SIZED_BY_FIRST:
            self.left -= _elements(args if func in _SIZED_BY_ALL else args[:1], kwargs)
            if self.left < 0:
                raise CheckpointError(
                    f"the card claims a larger model than its {self.elements:,} numbers of weights; copy the model "
                    "again, or train again"
                )
        return func(*args, **kwargs)


def _elements(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    sizes = args or (kwargs.get("size", ()),)
    return prod(int(n) for size in sizes for n in (size if isinstance(size, Sequence) else [size]))
