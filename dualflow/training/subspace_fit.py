"""Closed-form fit of a SubspaceLaw to the coordinates of training people; every choice is made by cross-fitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from dualflow.flows.linalg import with_fixed_signs
from dualflow.flows.subspace_law import COMPONENTS, LOG_SCALE_LIMIT, LawParameters, SubspaceLaw
from dualflow.training.mixture_fit import Doubles, GatedMixture, fit_mixture

Rows: TypeAlias = NDArray[np.bool_]

FLOORS, FLOOR_SHARE = (0.3, 0.8, 1.5, 2.5), 0.9
"""Candidates of the largest variance of a coordinate that does not scale with the person's spread, such as that of the
scanner's noise, and its largest share."""
SPREAD_RIDGES = (3000.0, 1000.0, 300.0, 100.0, 30.0)
"""Candidate ridge penalties of the spread's coefficients, beside the same spread for everyone."""
EIGEN_FOLDS = 30
"""Largest number of folds of the cross-validated eigenvalues."""
MIN_VARIANCE = 0.05
MIN_PEOPLE = 24
"""With fewer people the law is one Gaussian with the same spread for everyone."""


class SpreadChoice(NamedTuple):
    """A candidate of the spread.

    Attributes:
        floor: one of FLOORS.
        ridge: one of SPREAD_RIDGES; None gives everyone the same spread.
    """

    floor: float
    ridge: float | None


class FittedLaw(NamedTuple):
    """A fitted law.

    Attributes:
        turn: rotation of the given coordinates to those of the law, `[R, r]`.
        parameters: of the SubspaceLaw.
        facts: the choices and their held-out scores, for the model card.
    """

    turn: Tensor
    parameters: LawParameters
    facts: dict[str, float]


def fit_law(
    u: Tensor, person: Tensor, folds: Sequence[int], subjects: Sequence[str], law: SubspaceLaw, seed: int
) -> FittedLaw:
    """Fit the law of coordinates `u[N, R]` with person features `[N, F]`; the law gives the sizes.

    The coordinates are turned to the eigenvectors of their covariance, with cross-validated eigenvalues. The floor and
    ridge of the spread and the number of components are those with the best log-likelihood of held-out folds; a spread
    that differs between people and a larger mixture must be better by their standard error over people.
    """
    values, x = u.double().cpu().numpy(), person.double().cpu().numpy()
    turn = eigenvectors(values)[:, : law.rank]
    honest = held_out_coordinates(values, subjects)[:, : law.rank]
    variance, groups, q = decreasing(np.square(honest).mean(axis=0)), np.asarray(folds), law.leading
    people = np.unique(subjects, return_inverse=True)[1]
    facts: dict[str, float] = {"people": int(people.max()) + 1}

    def score_spread(fit: Rows, held: Rows, choice: SpreadChoice) -> Doubles:
        coefficients = fit_spread(honest[fit][:, q:], variance[q:], x[fit], choice)
        return spread_log_prob(honest[held][:, q:], variance[q:], x[held], coefficients, choice.floor)

    same = choice = SpreadChoice(FLOORS[0], None)
    count, enough = 1, facts["people"] >= MIN_PEOPLE and len(set(folds)) > 1
    if enough:
        choices = [same, *(SpreadChoice(*pair) for pair in product(FLOORS, SPREAD_RIDGES))]
        scores = {one: held_out(groups, partial(score_spread, choice=one)) for one in choices}
        best = max(scores, key=lambda key: scores[key].sum())
        facts["spread_gain"] = float((scores[best] - scores[same]).sum())
        if _is_better(scores[best], scores[same], people):
            choice = best
            facts |= {"spread_ridge": choice.ridge or 0.0, "spread_floor": choice.floor}
    level, *w = fit_spread(honest[:, q:], variance[q:], x, choice)
    leading = values @ turn[:, :q]
    leading = leading * np.sqrt(variance[:q] / np.square(leading).mean(axis=0).clip(1e-12))
    leading = leading / np.exp(spread_exponent(x, np.asarray(w)))[:, None]

    def score_mixture(fit: Rows, held: Rows, count: int) -> Doubles:
        return fit_mixture(leading[fit], x[fit], count, seed).log_prob(leading[held], x[held])

    if enough:
        likelihoods = [held_out(groups, partial(score_mixture, count=k)) for k in range(1, COMPONENTS + 1)]
        count = _fewest_within_error(likelihoods, people)
        facts |= {f"mixture_{k}": float(value.mean()) for k, value in enumerate(likelihoods, 1)}
    facts["components"] = count
    mixture = fit_mixture(leading, x, count, seed)
    scaled, floor = spread_variance(variance[q:], np.asarray([level]), choice.floor)
    return FittedLaw(torch.from_numpy(turn), _parameters(mixture, scaled[0], floor, np.asarray(w)), facts)


def eigenvectors(u: Doubles) -> Doubles:
    """Return the eigenvectors of the uncentred covariance of `u[N, R]` as columns, the largest eigenvalue first."""
    vectors = np.ascontiguousarray(np.linalg.eigh(u.T @ u)[1][:, ::-1])
    return with_fixed_signs(torch.from_numpy(vectors)).numpy()


def held_out_coordinates(u: Doubles, subjects: Sequence[str]) -> Doubles:
    """Return the coordinates of each scan along the eigenvectors of other people's covariance, `[N, R]`.

    Their mean squares are cross-validated eigenvalues (Bartz 2016): those of few people themselves are too large at
    the head and too small at the tail. Signs are arbitrary.
    """
    coordinates, people = np.empty_like(u), list(dict.fromkeys(subjects))
    for part in np.array_split(np.array(people), min(len(people), EIGEN_FOLDS)):
        held = np.isin(subjects, part)
        coordinates[held] = u[held] @ eigenvectors(u[~held])
    return coordinates


def decreasing(variance: Doubles) -> Doubles:
    """Return the closest decreasing sequence, at least MIN_VARIANCE."""
    from sklearn.isotonic import isotonic_regression  # slow to import

    return np.asarray(isotonic_regression(variance, increasing=False)).clip(MIN_VARIANCE)


def held_out(folds: NDArray[np.int_], score: Callable[[Rows, Rows], Doubles]) -> Doubles:
    """Return `score(fit, held)` of every person `[N]`, for the masks of the people outside and inside each fold."""
    values = np.zeros(len(folds))
    for fold in np.unique(folds):
        held = folds == fold
        values[held] = score(~held, held)
    return values


def spread_exponent(x: Doubles, w: Doubles) -> Doubles:
    """Return the logarithm of the spread of people with features `x[N, F]`."""
    return np.asarray(np.clip(x @ w, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))


def fit_spread(t: Doubles, variance: Doubles, x: Doubles, choice: SpreadChoice) -> Doubles:
    """Return the level a and the coefficients w of the spread, `[1 + F]`, by ridge maximum likelihood.

    t_ij ~ N(0, exp(a + 2 x_i w) (variance_j - f_j) + f_j). Without a ridge w is 0.
    """
    used, ridge = (x[:, :0], 0.0) if choice.ridge is None else (x, choice.ridge)

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        scaled, floor = spread_variance(variance, parameters[0] + 2 * used @ parameters[1:], choice.floor)
        total = scaled + floor
        slope = 0.5 * scaled / total * (1 - t**2 / total)
        value = 0.5 * (t**2 / total + np.log(total)).sum() + 0.5 * ridge * np.square(parameters[1:]).sum()
        return value, np.r_[slope.sum(), 2 * slope.sum(axis=1) @ used + ridge * parameters[1:]]

    estimate = minimize(loss, np.zeros(1 + used.shape[1]), jac=True, method="L-BFGS-B").x
    return np.concatenate([estimate, np.zeros(x.shape[1] - used.shape[1])])


def spread_log_prob(t: Doubles, variance: Doubles, x: Doubles, coefficients: Doubles, floor: float) -> Doubles:
    """Return the log-density of `t[N, J]` under the law of `fit_spread`, `[N]`."""
    total = sum(spread_variance(variance, coefficients[0] + 2 * spread_exponent(x, coefficients[1:]), floor))
    return np.asarray(-0.5 * (t**2 / total + np.log(2 * np.pi * total)).sum(axis=1))


def spread_variance(variance: Doubles, exponent: Doubles, floor: float) -> tuple[Doubles, Doubles]:
    """Return the part of the variances that scales with the spread `[N, J]`, and the part that does not `[J]`."""
    fixed = np.minimum(FLOOR_SHARE * variance, floor)
    return np.exp(np.clip(exponent, -5, 5))[:, None] * (variance - fixed), fixed


def _fewest_within_error(likelihoods: Sequence[Doubles], people: NDArray[np.int_]) -> int:
    """Return the smallest count whose held-out likelihood no larger count beats by more than its standard error."""
    for count, value in enumerate(likelihoods, 1):
        if not any(_is_better(larger, value, people) for larger in likelihoods[count:]):
            return count
    return len(likelihoods)


def _is_better(value: Doubles, than: Doubles, people: NDArray[np.int_]) -> bool:
    """Return whether held-out log-likelihoods of scans `[N]` are higher by more than the standard error over people.

    Scans of one person are not independent: their gains are summed first.
    """
    gain = np.bincount(people, value - than)
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


def _parameters(mixture: GatedMixture, variance: Doubles, floor: Doubles, w: Doubles) -> LawParameters:
    arrays = (mixture.means, np.linalg.cholesky(mixture.covariances), mixture.gate.T, variance, floor, w)
    return LawParameters(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
