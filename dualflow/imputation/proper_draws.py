"""Proper draws of the region values of scans without a target, from a model's predictions and samples.

A model's samples vary with the noise alone, its parameters are fixed; and its regressions are shrunk, which pulls
effects of side information to 0. Statistics on such draws have intervals that are too narrow and biased effects. Here
the model supplies what is particular to each person, and a regression per region, without shrinkage of the terms of the
analysis, supplies the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.errors import DataError
from dualflow.imputation.formula import require_full_rank

Floats = NDArray[np.float64]
LEAST_FREEDOM = 4
"""Least residual degrees of freedom of a regression; with fewer, the posterior has no variance."""
RIDGE = 1e-9


@dataclass(frozen=True)
class RegionScans:
    """What is known of N scans with R regions.

    Attributes:
        terms: design matrix of the side information `[N, K]`, with the intercept.
        prediction: predicted region means `[N, R]`, from a model that did not learn from the scan.
        noise: deviations of M samples of the model from their mean `[M, N, R]`.
    """

    terms: pd.DataFrame
    prediction: Floats
    noise: Floats

    def regressors(self, region: int) -> Floats:
        """Terms, then the prediction of one region, `[N, K + 1]`."""
        return np.column_stack([self.terms.to_numpy(), self.prediction[:, region]])


def proper_draws(measured: Floats, observed: RegionScans, missing: RegionScans, *, proper: bool = True) -> Floats:
    """Draw the regions of the missing scans M times, jointly over regions and scans, `[M, Q, R]`.

    Region r of scan i follows y_ir = b_r' [terms_i, prediction_ir] + s_r u_ir, where u is the model's noise, scaled to
    variance 1 over the observed scans. With flat priors of b and log s, the posterior of a region is

        s^2 ~ RSS / chi^2_(n - K - 1),    b | s ~ N(b^, s^2 (X'X)^-1)    (Rubin 1987, example 5.1),

    and a draw of it is a fit to simulated measurements y* = X b^ + s^ u*: s = s^^2 / s*, b = b^ + (s / s^) (b* - b^).
    The noise u* is a joint sample of all regions, so that draws of different regions vary together. Values of
    Gaussian noise give exactly this posterior.

    A region without a finite prediction in a scan is NaN there.

    Args:
        measured: region means of the observed scans `[N, R]`.
        observed: the observed scans.
        missing: the scans to draw.
        proper: False keeps b and s at their estimates, to show what the parameters' uncertainty adds.

    Raises:
        DataError: too few scans are observed, a term cannot be estimated from them, or the model has no noise.
    """
    require_full_rank(observed.terms, "terms of the imputation among scans with a measured target")
    least = observed.terms.shape[1] + 1 + LEAST_FREEDOM
    if len(measured) < least:
        raise DataError(
            f"{len(measured)} scans with a measured target, expected at least {least} for {observed.terms.shape[1]} "
            "terms; use fewer terms"
        )
    draws = np.full((len(missing.noise), len(missing.prediction), measured.shape[1]), np.nan)
    for region in range(measured.shape[1]):
        known = np.isfinite(measured[:, region]) & np.isfinite(observed.prediction[:, region])
        if known.sum() >= least:
            draws[:, :, region] = _draw_region(measured[known, region], observed, known, missing, region, proper)
    return draws


def _draw_region(
    values: Floats, observed: RegionScans, known: NDArray[np.bool_], missing: RegionScans, region: int, proper: bool
) -> Floats:
    """Draws of one region `[M, Q]`."""
    design, noise = observed.regressors(region)[known], observed.noise[:, known, region]
    size = np.sqrt(np.square(noise).mean())
    if not size > 0:
        raise DataError("the model has no samples, so it cannot impute; choose a flow, or a baseline with a spread")
    # A prediction that is a combination of the terms, such as that of the mean image, gets no coefficient.
    inverse = np.linalg.pinv(design / np.linalg.norm(design, axis=0), rcond=RIDGE)
    solve = inverse / np.linalg.norm(design, axis=0)[:, None]
    freedom = len(values) - np.linalg.matrix_rank(inverse)
    coefficients = solve @ values
    spread = np.sqrt(np.square(values - design @ coefficients).sum() / freedom)
    scales = np.full(len(noise), spread)
    drawn = np.repeat(coefficients[None], len(noise), axis=0)
    if proper:
        simulated = spread * noise / size
        shifts = simulated @ solve.T
        residuals = simulated - shifts @ design.T
        scales = spread**2 / np.sqrt(np.square(residuals).sum(axis=1) / freedom)
        drawn = drawn + shifts * (scales / spread)[:, None]
    values_drawn: Floats = drawn @ missing.regressors(region).T + scales[:, None] * missing.noise[:, :, region] / size
    return values_drawn


def explained_share(measured: Floats, observed: RegionScans) -> float:
    """Return the share of the variance that the terms leave and the predictions explain, as the median over regions.

    It is adjusted for the coefficient that a prediction costs, so that one without information scores 0 on average.
    """
    terms = observed.terms.to_numpy()
    shares = []
    for region in range(measured.shape[1]):
        known = np.isfinite(measured[:, region]) & np.isfinite(observed.prediction[:, region])
        if known.sum() < terms.shape[1] + 1 + LEAST_FREEDOM:
            continue
        scales = [
            _residual_variance(measured[known, region], design[known])
            for design in (terms, observed.regressors(region))
        ]
        shares.append(1 - scales[1] / scales[0])
    return float(max(np.median(shares), 0.0)) if shares else 0.0


def _residual_variance(values: Floats, design: Floats) -> float:
    residuals = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.square(residuals).sum() / (len(values) - np.linalg.matrix_rank(design)))
