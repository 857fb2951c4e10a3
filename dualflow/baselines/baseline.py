"""What every baseline is: a module with a point estimate, made ready on training pairs and perhaps trained further."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from dualflow.flows.interface import ConditionalModel
from dualflow.flows.local_linear import Solver, fit_local_linear
from dualflow.flows.objective import Objective


class Pairs(Protocol):
    """Training pairs: dicts of `source` [C, D, H, W], `target`, bool `mask` [1, D, H, W], `side` [S] (NaN unknown)."""

    def __len__(self) -> int:
        """Return the number of pairs."""

    def __getitem__(self, position: int, /) -> Mapping[str, Any]:
        """Return one pair."""


class Baseline(ConditionalModel):
    """A model that the flow is compared with.

    It is built from the grid and the numbers of side features and source channels, and saved by its state dict.
    """

    def objective(self) -> Objective | None:
        """Return the objective of the gradient steps after `fit`; None for a closed form."""
        return None

    @abstractmethod
    def fit(
        self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_local_linear
    ) -> list[Tensor] | None:
        """Set, in place, what follows from the training pairs in closed form.

        Args:
            pairs: the training pairs.
            folds: fold of each pair, one subject's pairs in one fold; by default dealt out in turn.
            solve: fits a local linear regression; a caller may keep and reuse its results.

        Returns:
            The linear prediction of each pair `[1, D, H, W]` from a fit without its fold; None where there is none.
        """


def each(pairs: Pairs) -> Iterator[Mapping[str, Any]]:
    """Iterate over pairs by position, for a torch dataset is no iterable."""
    return (pairs[position] for position in range(len(pairs)))
