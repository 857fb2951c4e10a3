"""RegionLaw: the joint law of a person's errors in the mean uptake of regions, Gaussian or a mixture.

A rival of the flows' SubspaceLaw; it shares no code with it, so that the two check each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dualflow.flows.linalg import with_fixed_signs
from dualflow.flows.rng import standard_noise, uniform_noise

DIRECTIONS = (2, 4)
"""Candidate numbers of leading principal components that the mixture describes jointly."""
PEOPLE_PER_COMPONENT = 10
"""Least number of people for each component."""
STARTS, ITERATIONS = 3, 50
"""Starting points of the mixture's fit, and iterations of L-BFGS from each."""
PRIOR_PEOPLE = 3.0
"""Weight of the prior of each component's covariance, in people."""
PRIOR_VARIANCE = 0.3
"""Its variance, relative to the variance of all people in that direction."""
MEAN_RIDGE, GATE_RIDGE = 1.0, 0.5
"""Gaussian priors of the component means and of the coefficients of the weights, as precisions."""


class RegionLaw(nn.Module):
    """Law of standardised errors `z[R]` given features f of the person.

    With E the eigenvectors and l the eigenvalues of the Ledoit-Wolf covariance (2004) of training people, the
    coordinates `t = E' z / sqrt(l)` are independent:

        t_1..d ~ sum_k p_k(f) N(m_k - sum_j p_j(f) m_j, S_k),  p(f) = softmax(B [1, f]),      t_j ~ N(0, 1) for j > d

    so the mean of z is 0 for everyone. One component is a Gaussian of the Ledoit-Wolf covariance.

    Args:
        regions: number of regions R.
        features: number of features.
        components: largest number of components.
    """

    vectors: Tensor
    deviations: Tensor
    means: Tensor
    roots: Tensor
    gate: Tensor

    def __init__(self, regions: int, features: int, components: int = 1) -> None:
        super().__init__()
        self.components, self.directions = components, min(max(DIRECTIONS), regions)
        self.register_buffer("vectors", torch.eye(regions))
        self.register_buffer("deviations", torch.ones(regions))
        self.register_buffer("means", torch.zeros(components, self.directions))
        self.register_buffer("roots", torch.eye(self.directions).repeat(components, 1, 1))
        self.register_buffer("gate", torch.zeros(components, 1 + features))
        self._keep(*_single(self.directions, features))

    def fit(self, errors: Tensor, features: Tensor, folds: Sequence[int], people: Sequence[str] | None = None) -> None:
        """Fit the law; held-out likelihood chooses the numbers of components and of directions d.

        Each component needs PEOPLE_PER_COMPONENT people, and a scan outside each fold.

        Args:
            errors: standardised errors of the training scans, `[N, R]`.
            features: `[N, F]`, complete.
            folds: cross-fitting fold of each scan.
            people: the person of each scan; None if all differ.
        """
        fold, person = torch.tensor(folds), np.unique(people or range(len(folds)), return_inverse=True)[1]
        outside_all = len(folds) - int(fold.bincount().max())
        most = min(self.components, len(set(person)) // PEOPLE_PER_COMPONENT, outside_all)
        mixtures = [(count, size) for count in range(2, most + 1) for size in DIRECTIONS if size <= errors.shape[1]]
        scores = dict.fromkeys([(1, self.directions), *mixtures], 0.0)
        for held_out in sorted(set(folds)) if mixtures else []:
            inside, outside = fold != held_out, fold == held_out
            self._fit_gaussian(errors[inside], person[inside.numpy()])
            for choice in scores:
                self._fit_components(errors[inside], features[inside], *choice)
                scores[choice] += float(self.log_prob(errors[outside], features[outside]).sum())
        self._fit_gaussian(errors, person)
        self._fit_components(errors, features, *max(scores, key=scores.__getitem__))

    def covariance(self) -> Tensor:
        """Return the Ledoit-Wolf covariance `[R, R]`."""
        scaled = self.vectors * self.deviations
        return scaled @ scaled.T

    def mixture(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights `[K]`, means `[K, d]` and covariances `[K, d, d]` of t_1..d, for features `[F]`."""
        log_weights, means = _components(features[None].double(), self.means.double(), self.gate.double())
        return log_weights[0], means[0], self.roots.double() @ self.roots.double().mT

    def log_prob(self, errors: Tensor, features: Tensor) -> Tensor:
        """Return the log-density `[N]` of standardised errors `[N, R]` of people with features `[N, F]`."""
        t = (errors @ self.vectors / self.deviations).double()
        leading, rest = t[:, : self.directions], t[:, self.directions :]
        mixture = self.means.double(), self.roots.double(), self.gate.double()
        normal = -0.5 * (rest.square() + log(2 * pi)).sum(dim=1)
        return _log_density(leading, features.double(), *mixture) + normal - self.deviations.double().log().sum()

    def draw(self, count: int, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw errors `[count, R]` of one person with features `[F]`."""
        log_weights, means = _components(features[None], self.means, self.gate)
        t = standard_noise((count, len(self.deviations)), self.deviations, generator)
        uniform = uniform_noise(t[:, 0], generator)
        component = torch.searchsorted(log_weights[0].exp().cumsum(dim=0)[:-1], uniform)
        leading = (self.roots[component] @ t[:, : self.directions, None])[..., 0]
        t[:, : self.directions] = leading + means[0, component]
        return (t * self.deviations) @ self.vectors.T

    def _fit_gaussian(self, errors: Tensor, person: NDArray[np.intp]) -> None:
        """Fit the covariance: people have one weight each, and one scan of each tells how far it is shrunk."""
        from sklearn.covariance import ledoit_wolf_shrinkage, shrunk_covariance

        scans, (_, first, index, visits) = errors.double().numpy(), np.unique(person, True, True, True)
        weights = 1 / visits[index]
        empirical = (weights[:, None] * scans).T @ scans / weights.sum()
        shrinkage = ledoit_wolf_shrinkage(scans[first], assume_centered=True)
        covariance = torch.from_numpy(shrunk_covariance(empirical, shrinkage))
        values, vectors = torch.linalg.eigh(covariance)
        self.deviations.copy_(values.flip(0).clamp_min(1e-8).sqrt())
        self.vectors.copy_(with_fixed_signs(vectors.flip(1)))

    def _fit_components(self, errors: Tensor, features: Tensor, count: int, directions: int) -> None:
        if count == 1:
            self._keep(*_single(self.directions, features.shape[1]))
            return
        t = (errors @ self.vectors / self.deviations)[:, :directions].double()
        fits = [_fit_mixture(t, features.double(), count, seed) for seed in range(STARTS)]
        self._keep(*min(fits, key=lambda fit: fit[0])[1])

    def _keep(self, means: Tensor, roots: Tensor, gate: Tensor) -> None:
        """Store a mixture; unused components get the weight 0, and unused directions a standard normal law."""
        count, directions = means.shape
        self.means.zero_()[:count, :directions] = means
        self.roots.copy_(torch.eye(self.directions))[:count, :directions, :directions] = roots
        self.gate.zero_()[:count] = gate
        self.gate[count:, 0] = -1e4


def _single(directions: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(1, directions), torch.eye(directions)[None], torch.zeros(1, 1 + features)


def _components(features: Tensor, means: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Return each person's log weights `[N, K]` and component means `[N, K, d]`, whose weighted mean is 0."""
    log_weights = (gate[:, 0] + features @ gate[:, 1:].T).log_softmax(dim=1)
    return log_weights, means - (log_weights.exp() @ means)[:, None]


def _log_density(t: Tensor, features: Tensor, means: Tensor, roots: Tensor, gate: Tensor) -> Tensor:
    """Return the log-density `[N]` of leading coordinates `[N, d]`.

    Args:
        t: `[N, d]`.
        features: `[N, F]`.
        means: `[K, d]`.
        roots: Cholesky factors of the covariances, `[K, d, d]`.
        gate: coefficients of the weights, `[K, 1 + F]`.
    """
    log_weights, centred = _components(features, means, gate)
    white = torch.einsum("kij,nkj->nki", _inverse(roots), t[:, None] - centred)
    log_dets = roots.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return (log_weights - log_dets - 0.5 * (white.square() + log(2 * pi)).sum(dim=2)).logsumexp(dim=1)


def _inverse(roots: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.solve_triangular(roots, torch.eye(roots.shape[-1]).to(roots), upper=False)
    return inverse


def _fit_mixture(t: Tensor, features: Tensor, count: int, seed: int) -> tuple[float, tuple[Tensor, Tensor, Tensor]]:
    """Maximise the penalised likelihood from one starting point; return the loss and means, roots and gate."""
    from scipy.optimize import minimize

    directions, width = t.shape[1], 1 + features.shape[1]
    sizes = count * directions, count * directions**2, count * width

    def unpack(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, lower, gate = flat.split_with_sizes(sizes)
        square = lower.view(count, directions, directions)
        roots = square.tril(-1) + square.diagonal(dim1=1, dim2=2).exp().diag_embed()
        return means.view(count, directions), roots, gate.view(count, width)

    def loss(flat: Tensor) -> Tensor:
        means, roots, gate = unpack(flat)
        log_det = 2 * roots.diagonal(dim1=1, dim2=2).log().sum()
        covariances = PRIOR_PEOPLE * (log_det + PRIOR_VARIANCE * _inverse(roots).square().sum())
        priors = covariances + MEAN_RIDGE * means.square().sum() + GATE_RIDGE * gate[:, 1:].square().sum()
        return 0.5 * priors - _log_density(t, features, means, roots, gate).sum()

    def value_and_gradient(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        flat = torch.tensor(point, requires_grad=True)
        value = loss(flat)
        (gradient,) = torch.autograd.grad(value, flat)
        return float(value.detach()), gradient.numpy()

    people = torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))[:count]
    lower = 0.5 * log(PRIOR_VARIANCE) * torch.eye(directions).repeat(count, 1, 1)
    start = torch.cat([0.7 * t[people].flatten(), lower.flatten(), torch.zeros(sizes[2])]).numpy()
    fitted = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return float(fitted.fun), unpack(torch.from_numpy(fitted.x))
