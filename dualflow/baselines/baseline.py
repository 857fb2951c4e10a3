"""What every baseline is: a module with a point estimate, made ready on training pairs and perhaps trained further."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn


class Pairs(Protocol):
    """Training pairs: dicts of `source` [C, D, H, W], `target`, bool `mask` [1, D, H, W], `side` [S] (NaN unknown)."""

    def __len__(self) -> int:
        """Return the number of pairs."""

    def __getitem__(self, position: int, /) -> Mapping[str, Any]:
        """Return one pair."""


class Baseline(nn.Module, ABC):
    """A rival of the flow, built from grid and numbers of side columns and source channels; saved by its state dict.

    Attributes:
        trainable: whether gradient steps follow `fit`; then forward(target, source, side, mask, mean) returns a
            dict of scalars with `loss`; `mean` is what `fit` returned for the scans.
    """

    trainable: ClassVar[bool] = False

    @abstractmethod
    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None) -> list[Tensor] | None:
        """Set, in place, what follows from the training pairs in closed form.

        Args:
            pairs: the training pairs.
            folds: fold of each pair, one person's pairs in one fold; by default dealt out in turn.

        Returns:
            The linear prediction of each pair `[1, D, H, W]` from a fit without its fold; None where there is none.
        """

    @abstractmethod
    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the target `[N, 1, D, H, W]` expected for the source `[N, C, D, H, W]` and side values `[N, S]`."""


def each(pairs: Pairs) -> Iterator[Mapping[str, Any]]:
    """Iterate over pairs by position, for a torch dataset is no iterable."""
    return (pairs[position] for position in range(len(pairs)))
