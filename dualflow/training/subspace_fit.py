"""Closed-form fit of a SubspaceLaw to the coordinates of training people; every choice is made by cross-fitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualflow.arrays import Bools, Doubles
from dualflow.baselines.scale_fit import fit_scale
from dualflow.flows.linalg import with_fixed_signs
from dualflow.flows.subspace_law import COMPONENTS, LawParameters, SubspaceLaw
from dualflow.training.mixture_fit import GatedMixture, fit_mixture

FLOOR, FLOOR_SHARE = 1.0, 0.9
"""Largest variance of a coordinate that does not scale with the person's spread, that of the remaining latents, and its
largest share."""
LOUD = 4.0
"""Variance above which a coordinate tells a person's spread: at most a quarter of it does not scale."""
EIGEN_FOLDS = 30
"""Largest number of folds of the cross-validated eigenvalues."""
MIN_VARIANCE = 0.05
UNSEEN = 1e-6
"""Weight, relative to the mean eigenvalue, of the order of coordinates in directions in which nobody varies."""
MIN_PEOPLE = 24
"""With fewer people the law is one Gaussian, the same for everyone."""


def fit_law(
    u: Tensor, person: Tensor, folds: Sequence[int], subjects: Sequence[str], law: SubspaceLaw, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """Fit the law in place to coordinates `u[N, R]`, the most important first, with person features `[N, F]`.

    The coordinates are turned to the eigenvectors of their covariance, with cross-validated eigenvalues. The spread of
    a person is fitted to the energy of the loud coordinates among those that do not follow the mixture, or of all of
    these if none is loud; without any everyone has the same spread. The number of components is the one with the best
    log-likelihood of held-out folds; a larger mixture must be better by its standard error over people.

    Returns:
        The rotation of the given coordinates to those of the law, `[R, r]`; facts of the fit, for the model card.
    """
    values, features, q = u.double().cpu().numpy(), person.double().cpu(), law.leading
    groups, people = np.asarray(folds), np.unique(subjects, return_inverse=True)[1]
    turn = eigenvectors(values)[:, : law.rank]
    cross_fitted = held_out_coordinates(values, subjects)[:, : law.rank]
    variance = decreasing(np.square(cross_fitted).mean(axis=0))
    facts: dict[str, float] = {"people": int(people.max()) + 1}
    enough = facts["people"] >= MIN_PEOPLE and len(set(folds)) > 1
    spread = np.ones(len(cross_fitted))
    if enough:
        same = log_prob(cross_fitted[:, q:], variance[q:], spread)
        energy = torch.from_numpy(spread_energy(cross_fitted[:, q:], variance[q:]))
        spread = fit_scale(law.spread, features, energy, folds).numpy()
        floor = floor_of(variance)
        floor[:q] = 0  # all of the mixture scales
        variance = decreasing(((np.square(cross_fitted) - floor) / np.square(spread)[:, None]).mean(axis=0) + floor)
        facts["spread_gain"] = float((log_prob(cross_fitted[:, q:], variance[q:], spread) - same).sum())
    leading = values @ turn[:, :q] / spread[:, None]
    leading = leading * np.sqrt(variance[:q] / np.square(leading).mean(axis=0).clip(1e-12))
    x = features.numpy()

    def score_mixture(fit: Bools, held: Bools, count: int) -> Doubles:
        return fit_mixture(leading[fit], x[fit], count, seed).log_prob(leading[held], x[held])

    count = 1
    if enough:
        likelihoods = [held_out(groups, partial(score_mixture, count=k)) for k in range(1, COMPONENTS + 1)]
        count = _fewest_within_error(likelihoods, people)
        facts |= {f"mixture_{k}": float(value.mean()) for k, value in enumerate(likelihoods, 1)}
    facts["components"] = count
    law.set_parameters(_parameters(fit_mixture(leading, x, count, seed), variance[q:]))
    return torch.from_numpy(turn), facts


def eigenvectors(u: Doubles) -> Doubles:
    """Return the eigenvectors of the uncentred covariance of `u[N, R]` as columns, the largest eigenvalue first.

    Of N < R people, R - N eigenvalues are 0, and rounding would decide their eigenvectors. A small slope on the
    diagonal gives them the order of the coordinates.
    """
    products = u.T @ u
    slope = UNSEEN * products.trace() / len(products) * np.linspace(1, 0, len(products))
    vectors = np.ascontiguousarray(np.linalg.eigh(products + np.diag(slope))[1][:, ::-1])
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


def held_out(folds: NDArray[np.int_], score: Callable[[Bools, Bools], Doubles]) -> Doubles:
    """Return `score(fit, held)` of every person `[N]`, for the masks of the people outside and inside each fold."""
    values = np.zeros(len(folds))
    for fold in np.unique(folds):
        held = folds == fold
        values[held] = score(~held, held)
    return values


def floor_of(variance: Doubles) -> Doubles:
    """Return the part of variances `[J]` that does not scale with the person's spread, such as the scanner's noise."""
    return np.minimum(FLOOR_SHARE * variance, FLOOR)


def spread_energy(t: Doubles, variance: Doubles) -> Doubles:
    """Return the sum of squares `[N]` of the loud ones of coordinates `t[N, J]`, or of all if none is loud."""
    loud = variance > LOUD
    return np.asarray(np.square(t[:, loud] if loud.any() else t).sum(axis=1))


def log_prob(t: Doubles, variance: Doubles, spread: Doubles) -> Doubles:
    """Return the log-density `[N]` of `t[N, J]` with `t_ij ~ N(0, spread_i^2 (variance_j - f_j) + f_j)`."""
    floor = floor_of(variance)
    total = np.square(spread)[:, None] * (variance - floor) + floor
    return np.asarray(-0.5 * (t**2 / total + np.log(2 * np.pi * total)).sum(axis=1))


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


def _parameters(mixture: GatedMixture, variance: Doubles) -> LawParameters:
    floor = floor_of(variance)
    arrays = (mixture.means, np.linalg.cholesky(mixture.covariances), mixture.gate.T, variance - floor, floor)
    return LawParameters(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
