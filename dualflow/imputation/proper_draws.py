"""Proper draws of the region values of scans without a target, from a model's predictions and samples.

A model's samples vary with the noise alone, its parameters are fixed; and its regressions are shrunk, which pulls
effects of side information to 0. Statistics on such draws may have intervals that are too narrow, and biased effects.
Here the model supplies what is particular to each person, and a regression per region on the terms of the analysis
supplies the rest, with the uncertainty of its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dualflow.arrays import Bools, Doubles
from dualflow.errors import DataError
from dualflow.imputation.formula import INTERCEPT, require_full_rank
from dualflow.imputation.region_regression import RegionRegression, Regressions

LEAST_FREEDOM = 4
"""Least residual degrees of freedom of a regression; with fewer, the posterior has no variance."""


@dataclass(frozen=True)
class RegionScans:
    """What is known of N scans with R regions.

    Attributes:
        terms: design matrix of the side information `[N, K]`, with the intercept.
        prediction: predicted region means `[N, R]`, from a model that did not learn from the scan.
        noise: deviations of M samples of the model from their mean `[M, N, R]`.
    """

    terms: pd.DataFrame
    prediction: Doubles
    noise: Doubles

    @property
    def slope_terms(self) -> Doubles:
        """Terms without the intercept `[N, K - 1]`."""
        return self.terms.drop(columns=INTERCEPT).to_numpy()

    def regressors(self, region: int) -> Doubles:
        """Terms, then the prediction of one region, `[N, K + 1]`."""
        return np.column_stack([self.terms.to_numpy(), self.prediction[:, region]])

    def regions(self, chosen: Bools) -> RegionScans:
        """The same scans with some of the regions."""
        return RegionScans(self.terms, self.prediction[:, chosen], self.noise[:, :, chosen])


def proper_draws(
    measured: Doubles, observed: RegionScans, missing: RegionScans, seed: int, *, proper: bool = True
) -> Doubles:
    """Draw the regions of the missing scans M times, jointly over regions and scans, `[M, Q, R]`.

    Region r of scan i follows y_ir = a_r + b_r' [terms_i, prediction_ir] + s_r u_ir, where u is the model's noise,
    scaled to variance 1 over the observed scans. The slopes have the prior b_r ~ N(b, T), whose mean and variance over
    regions the data give (`RegionRegression`); a and log s have flat priors. A draw from the posterior compares the
    estimates with those from simulated measurements y* = X b* + s^ u*, where b* is drawn from the prior:

        s = s^^2 / s*^,    b = b^ + (s / s^) (b* - b*^)    (Rubin 1987, example 5.1, where T is infinite).

    The noise u* is a joint sample of all regions, so that draws of different regions vary together. The mean b and the
    variance T are estimated anew from y*, so that their uncertainty counts too.

    A region without a finite prediction in a scan is NaN there. A region whose measurements or noise do not vary, or
    whose measured scans do not tell the terms apart, is NaN in all scans.

    Args:
        measured: region means of the observed scans `[N, R]`.
        observed: the observed scans.
        missing: the scans to draw.
        seed: of the draws from the prior.
        proper: False keeps b and s at their estimates, to show what the parameters' uncertainty adds.

    Raises:
        DataError: too few scans are observed, a term cannot be estimated from them, or the model has no noise.
    """
    require_full_rank(observed.terms, "terms of the imputation among scans with a measured target")
    if len(measured) < (least := least_scans(observed.terms.shape[1])):
        raise DataError(
            f"{len(measured)} scans with a measured target, expected at least {least} for {observed.terms.shape[1]} "
            "terms; use fewer terms"
        )
    if not np.nanmax(np.abs(observed.noise), initial=0.0) > 0:
        raise DataError("the model has no samples, so it cannot impute; choose a flow, or a baseline with a spread")
    known, used = regions_that_can_be_fitted(measured, observed)
    draws = np.full((len(missing.noise), len(missing.prediction), measured.shape[1]), np.nan)
    if used.any():
        draws[:, :, used] = _draw(
            measured[:, used], observed.regions(used), known[:, used], missing.regions(used), seed, proper=proper
        )
    return draws


def least_scans(terms: int) -> int:
    """Fewest measured scans from which a regression on a number of terms is drawn."""
    return terms + 1 + LEAST_FREEDOM


def regions_that_can_be_fitted(measured: Doubles, observed: RegionScans) -> tuple[Bools, Bools]:
    """Return which values are known `[N, R]`, and which regions have enough of them `[R]`."""
    known, terms = np.isfinite(measured) & np.isfinite(observed.prediction), observed.terms.to_numpy()
    used = [
        rows.sum() >= least_scans(terms.shape[1])
        and np.linalg.matrix_rank(terms[rows]) == terms.shape[1]
        and np.ptp(measured[rows, region]) > 0
        and np.abs(observed.noise[:, rows, region]).max() > 0
        for region, rows in enumerate(known.T)
    ]
    return known, np.array(used, dtype=bool)


def _draw(
    measured: Doubles, observed: RegionScans, known: Bools, missing: RegionScans, seed: int, *, proper: bool
) -> Doubles:
    regression = RegionRegression(observed.slope_terms, observed.prediction, known, observed.noise)
    fitted = regression.fit(measured)
    drawn = _posterior(regression, fitted, seed) if proper else fitted
    noise: Doubles = drawn.spread[..., None, :] * missing.noise / regression.size
    return regression.values(drawn, missing.slope_terms, missing.prediction) + noise


def _posterior(regression: RegionRegression, fitted: Regressions, seed: int) -> Regressions:
    """Draw the parameters once for each draw of the noise."""
    standard = np.random.default_rng(seed).normal(size=(len(regression.noise), *fitted.slopes.shape))
    slopes = fitted.centre + np.sqrt(fitted.between) * standard
    simulated = regression.fit(regression.change(slopes) + fitted.spread * regression.noise, fitted.errors)
    ratio = fitted.spread / simulated.spread
    return fitted._replace(
        level=fitted.level - ratio * simulated.level,
        slopes=fitted.slopes + ratio[..., None] * (slopes - simulated.slopes),
        spread=ratio * fitted.spread,
    )


def explained_share(measured: Doubles, observed: RegionScans) -> float:
    """Return the share of the variance that the terms leave and the predictions explain, as the median over regions.

    It is adjusted for the coefficient that a prediction costs: one that is independent of the values scores about 0.
    """
    known, used = regions_that_can_be_fitted(measured, observed)
    shares = []
    for region in map(int, np.flatnonzero(used)):
        rows = known[:, region]
        scales = [
            _residual_variance(measured[rows, region], design[rows])
            for design in (observed.terms.to_numpy(), observed.regressors(region))
        ]
        shares.append(1 - scales[1] / scales[0])
    return float(max(np.median(shares), 0.0)) if shares else 0.0


def _residual_variance(values: Doubles, design: Doubles) -> float:
    residuals = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.square(residuals).sum() / (len(values) - np.linalg.matrix_rank(design)))
