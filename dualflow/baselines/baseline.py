"""Baseline: the interface of all baselines, with a closed-form fit, an optional objective and a point estimate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.interface import ConditionalModel
from dualflow.flows.objective import Objective
from dualflow.flows.regression_scans import Pairs


class Baseline(ConditionalModel):
    """A model that the flow is compared with.

    Its constructor takes the grid and the numbers of side features and source channels. Only its state dict is saved.
    """

    is_conditional: ClassVar[bool] = True
    """Whether the prediction depends on the source and the side information."""

    def objective(self) -> Objective | None:
        """Return the objective of the gradient steps after `fit`; None for a closed form."""
        return None

    @abstractmethod
    def fit(
        self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form
    ) -> list[Tensor] | None:
        """Fit the closed-form parts of the model in place.

        Args:
            pairs: the training pairs.
            folds: fold of each pair, with all pairs of a subject in one fold; by default every pair is a subject.
            solve: fits a mean in closed form; a caller may cache its results.

        Returns:
            The cross-fitted linear prediction of each pair `[1, D, H, W]`; None without a linear model.
        """
