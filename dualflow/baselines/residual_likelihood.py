"""Exact density of a person's error under a ResidualLaw, so that closed forms are compared with flows in bits."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from dualflow.baselines.residual_law import ResidualLaw
from dualflow.flows.side_information import known_side


@torch.no_grad()
def log_density(law: ResidualLaw, error: Tensor, mask: Tensor, source: Tensor, side: Tensor | None = None) -> float:
    """Return the log-density in nats of the errors of the V voxels in the mask; NaN if rounding makes them dependent.

    The errors are Gaussian given the leading coordinates t of the regions, `error = n + Q t`, and t follows a mixture
    (see RegionLaw). With G the covariance for t ~ N(0, 1), its Cholesky factor L and W = L^-1 Q, the covariance of a
    component N(m, S) is `L (1 + W (S - 1) W') L'`. One factorisation of V^3 / 3 operations serves all components.

    Args:
        law: a fitted law.
        error: `[D, H, W]`, target minus mean; voxels outside the mask are ignored.
        mask: `[D, H, W]`, bool.
        source: `[1, C, D, H, W]`.
        side: `[1, S]`, NaN where unknown.
    """
    known = known_side(side, source, law.side_features)[0]
    voxel_scale, region_scale = (float(scale) for scale in law.scales(source, side))
    spread = law.interpolate(torch.eye(len(law.region_deviation)).to(error))[:, mask].double()
    with_means = law.covariance_with_means()
    shared, among = with_means[:, mask].double(), law.region_means(with_means).double()
    half = shared - among @ spread / 2
    # In place: with 10,000 voxels each matrix takes 0.8 GB, and seconds to write.
    deviation = law.deviation[mask].double()
    field = law.kernel.correlation(mask.nonzero()).double().mul_(deviation[:, None]).mul_(deviation)
    field.addmm_(spread.T, half, alpha=-1).addmm_(half.T, spread, alpha=-1)
    loadings = (
        region_scale * (spread.T * law.region_deviation) @ (law.regions.vectors * law.regions.deviations).double()
    )
    root, failed = torch.linalg.cholesky_ex(field.mul_(voxel_scale**2).addmm_(loadings, loadings.T))
    if failed:
        return float("nan")
    columns = torch.cat([error[mask][:, None].double(), loadings[:, : law.regions.directions]], dim=1)
    white = torch.linalg.solve_triangular(root, columns, upper=False)
    constant = root.diagonal().log().sum() + 0.5 * len(columns) * log(2 * pi)
    return float(_log_mixture(white[:, 0], white[:, 1:], *law.regions.mixture(known)) - constant)


def _log_mixture(e: Tensor, w: Tensor, log_weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Return the log of `sum_k p_k exp(-r' C^-1 r / 2) / sqrt(det C)`, `r = e - W m_k`, `C = 1 + W (S_k - 1) W'`.

    Args:
        e: `[V]`.
        w: `[V, d]`.
        log_weights: `[K]`.
        means: `[K, d]`.
        covariances: `[K, d, d]`.
    """
    one = torch.eye(w.shape[1]).to(w)
    terms = []
    for mean, covariance in zip(means, covariances, strict=True):
        residual, change = e - w @ mean, covariance - one
        inner = one + change @ (w.T @ w)
        along = w.T @ residual
        quadratic = residual @ residual - along @ torch.linalg.solve(inner, change @ along)
        terms.append(-0.5 * (quadratic + torch.linalg.slogdet(inner).logabsdet))
    return (log_weights + torch.stack(terms)).logsumexp(dim=0)
