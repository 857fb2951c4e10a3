"""A Gaussian mixture whose weights depend on person features, fitted by expectation maximisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from dualflow.arrays import Doubles

STARTS, STEPS, GATE_STEPS = 3, 200, 5
TOLERANCE = 1e-5
"""Gain in log-likelihood per person below which an EM run has converged."""
MEAN_SHRINKAGE = 2.0
"""Pseudo-people at 0 that each component's mean is drawn to."""
COVARIANCE_SHARE = 0.5
"""Covariance, relative to that of all people, that each component's is shrunk to by q + 2 pseudo-people."""
GATE_PENALTY, INTERCEPT_PENALTY = 3.0, 0.1
"""Ridge penalties on the coefficients and intercepts of the weights' logits."""


@dataclass(frozen=True)
class GatedMixture:
    """p(z | x) = sum_k softmax([1, x] gate)_k N(z; means_k, covariances_k).

    Attributes:
        means: `[K, q]`.
        covariances: `[K, q, q]`.
        gate: `[1 + F, K]`.
    """

    means: Doubles
    covariances: Doubles
    gate: Doubles

    def log_parts(self, z: Doubles, x: Doubles) -> Doubles:
        """Return the log joint density of point and component, `[N, K]`, for `z[N, q]` and features `x[N, F]`."""
        parts = [_log_normal(z, mean, cov) for mean, cov in zip(self.means, self.covariances, strict=True)]
        logits = self.gate[0] + x @ self.gate[1:]
        return np.asarray(np.stack(parts, axis=1) + log_softmax(logits, axis=1))

    def log_prob(self, z: Doubles, x: Doubles) -> Doubles:
        """Return the log-density, `[N]`."""
        return np.asarray(logsumexp(self.log_parts(z, x), axis=1))


def fit_mixture(z: Doubles, x: Doubles, count: int, seed: int = 0) -> GatedMixture:
    """Fit a mixture of `count` components to `z[N, q]` with features `x[N, F]`; keep the best of several starts.

    Means and covariances are shrunk, as a maximum a posteriori estimate, so that few people do not give a component of
    their own. One component is a Gaussian of mean 0.
    """
    people, size = z.shape
    pooled = z.T @ z / people + 1e-6 * np.eye(size)
    if count == 1:
        return GatedMixture(np.zeros((1, size)), pooled[None], np.zeros((1 + x.shape[1], 1)))
    rng, fits = np.random.default_rng(seed), []
    for _ in range(STARTS):
        start = 0.7 * z[rng.choice(people, count, replace=False)]
        covariances = np.stack([COVARIANCE_SHARE * pooled] * count)
        mixture = GatedMixture(start, covariances, np.zeros((1 + x.shape[1], count)))
        last = -np.inf
        for _ in range(STEPS):
            parts = mixture.log_parts(z, x)
            totals = logsumexp(parts, axis=1, keepdims=True)
            if totals.mean() < last + TOLERANCE:
                break
            last = float(totals.mean())
            mixture = _maximise(z, x, np.exp(parts - totals), pooled, mixture.gate)
        fits.append((float(mixture.log_prob(z, x).sum()), mixture))
    return max(fits, key=lambda fit: fit[0])[1]


def _maximise(z: Doubles, x: Doubles, shares: Doubles, pooled: Doubles, gate: Doubles) -> GatedMixture:
    """The M step: means, covariances and gate for the components' shares of the people, `[N, K]`."""
    size, totals = z.shape[1], shares.sum(axis=0)
    means = (shares.T @ z) / (totals + MEAN_SHRINKAGE)[:, None]
    prior, covariances = (size + 2) * COVARIANCE_SHARE * pooled, []
    for mean, share, total in zip(means, shares.T, totals, strict=True):
        offset = z - mean
        covariances.append(((share[:, None] * offset).T @ offset + prior) / (total + size + 2))
    return GatedMixture(means, np.stack(covariances), _fit_gate(x, shares, gate))


def _fit_gate(x: Doubles, shares: Doubles, start: Doubles) -> Doubles:
    """Penalised multinomial logistic regression of the shares on the features, `[1 + F, K]`.

    A few steps from the last estimate are enough, because the next M step continues.
    """
    design = np.column_stack([np.ones(len(x)), x])
    penalty = np.r_[INTERCEPT_PENALTY, np.full(x.shape[1], GATE_PENALTY)][:, None]

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        gate = flat.reshape(start.shape)
        log_weights = log_softmax(design @ gate, axis=1)
        gradient = design.T @ (np.exp(log_weights) - shares) + penalty * gate
        return -(shares * log_weights).sum() + 0.5 * (penalty * gate**2).sum(), gradient.ravel()

    estimate = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": GATE_STEPS}).x
    return np.asarray(estimate).reshape(start.shape)


def _log_normal(z: Doubles, mean: Doubles, covariance: Doubles) -> Doubles:
    root = np.linalg.cholesky(covariance)
    solved = np.linalg.solve(root, (z - mean).T)
    constant = np.log(root.diagonal()).sum() + 0.5 * len(mean) * np.log(2 * np.pi)
    return np.asarray(-0.5 * np.square(solved).sum(axis=0) - constant)
