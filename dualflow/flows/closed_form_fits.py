"""FITS: the conditional means with a closed-form fit, and `fit_closed_form`, which fits any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.local_linear_fit import fit_local_linear
from dualflow.flows.regression_scans import RegressionScan
from dualflow.flows.stacked_fit import fit_stacked_mean
from dualflow.flows.stacked_mean import StackedMean

Model = TypeVar("Model", bound=nn.Module)

FITS: dict[type[nn.Module], Callable[..., tuple[Any, list[Tensor], dict[str, Any]]]] = {
    LocalLinear: fit_local_linear,
    StackedMean: fit_stacked_mean,
}
"""Class of a conditional mean -> its fit."""


class Solver(Protocol):
    """A function that fits a conditional mean in closed form: `fit_closed_form`, or a cached version."""

    def __call__(
        self, scans: Iterable[RegressionScan], model: Model, **options: Any
    ) -> tuple[Model, list[Tensor], dict[str, Any]]:
        """Fit `model` in place; return the same as `fit_closed_form`."""


def fit_closed_form(
    scans: Iterable[RegressionScan], model: Model, **options: Any
) -> tuple[Model, list[Tensor], dict[str, Any]]:
    """Fit `model`, of a class in FITS, in place and cross-fitted.

    Args:
        scans: training scans.
        model: receives the fit to all scans.
        options: of the fit.

    Returns:
        The model; the prediction `[1, D, H, W]` of each scan by a fit without the scan's fold; facts of the fit.

    Raises:
        DataError: there is no scan, or all scans are in one fold.
    """
    return FITS[type(model)](scans, model, **options)


def fit_options(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Return all options of the fit of `model`: its defaults, replaced by `options`."""
    parameters = signature(FITS[type(model)]).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY} | options


def is_closed_form(model: nn.Module) -> bool:
    """Return whether a conditional mean is fitted in closed form, so that its training images are cross-fitted."""
    return type(model) in FITS
