"""One linear model per region on completed tables, pooled; beside it complete cases and single imputation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles
from dualflow.errors import DataError
from dualflow.evaluation.statistics import holm
from dualflow.imputation.formula import INTERCEPT, require_full_rank
from dualflow.imputation.jackknife import carriers, fixed_weights, jackknife
from dualflow.imputation.mixed_model import fit_random_intercepts
from dualflow.imputation.pooling import Pooled, pool
from dualflow.imputation.replicates import Replicates

ANALYSIS_TABLE = "regions.tsv"
"""File of an analysis's table in its folder."""
MULTIPLE, RUBIN, COMPLETE, SINGLE = METHODS = ("multiple", "Rubin's rules", "complete cases", "single")
"""Multiple imputation with the jackknife's intervals; the same with those of Rubin's rules; only the scans with a
measured target; the mean of the draws in place of each missing value."""
ROUNDING = 1e-9
"""Relative difference below which values count as equal."""
COLUMNS = (
    "region", "term", "method", "estimate", "se", "low", "high", "p", "p_holm", "q_fdr", "df", "fmi", "scans",
    "measured", "carriers", "gain",
)  # fmt: skip
LEAST_CARRIERS = 10
"""Fewest subjects that carry a term of which the jackknife may narrow the intervals.

The jackknife of fewer varies so much between studies that intervals would miss more often than they say.
"""

Fit = tuple[Doubles, Doubles, Doubles]
"""Coefficients, their variances and the degrees of freedom of these, each `[..., R, K]`."""


def analyse_regions(
    values: Doubles,
    observed: Bools,
    design: pd.DataFrame,
    subjects: Sequence[str],
    regions: Sequence[str],
    replicates: Replicates | None = None,
    *,
    derived: int = 0,
) -> pd.DataFrame:
    """Fit and pool the model of every region.

    Subjects with several scans get a random intercept (a linear mixed model); otherwise the fits are least squares.

    Args:
        values: completed tables, `[M, N, R]`; measured values are the same in all of them.
        observed: whether the target of a scan was measured `[N]`.
        design: design matrix `[N, K]` without unknown values.
        subjects: subject of each scan.
        regions: names of the R regions.
        replicates: of the outcomes, for the standard errors of MULTIPLE; without them they are those of Rubin's rules.
        derived: how many of the last outcomes are computed from others, such as ratios. The jackknife's correction of
            Rubin's rules that all outcomes share rests on the others.

    Returns:
        One row per region, term and method, columns COLUMNS. `p_holm` and `q_fdr` adjust p over the outcomes of a term
        and method (Holm 1979; Benjamini & Hochberg 1995). `carriers` is how many subjects carry the term in the
        jackknife; with fewer than LEAST_CARRIERS its variances are at least those of Rubin's rules. `gain` is the
        variance of complete cases over that of the method, minus 1: how many more measured scans the method is worth,
        as a share. A method without enough scans or without a result has no row.

    Raises:
        DataError: a term cannot be estimated from all scans.
    """
    require_full_rank(design, "terms of the analysis")
    model = GroupModel(design.to_numpy(), np.asarray(subjects))
    known = np.isfinite(values).all(axis=0) & _varies(values)
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    fits, ratios, shares = [], [], []
    for index, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(pattern_of.reshape(-1) == index)
        part = None if replicates is None else replicates.regions(columns).chosen(pattern)
        fit = _fit_methods(model, values[:, :, columns], observed & pattern, pattern, part)
        if fit is not None:
            fits.append(([regions[int(column)] for column in columns], fit))
            if fit.ratio is not None and fit.shares is not None:
                is_linear = columns < len(regions) - derived
                ratios.append(fit.ratio[is_linear])
                shares.append(fit.shares[is_linear])
    if not fits:
        raise DataError(
            f"no region varies over scans that tell the {design.shape[1]} coefficients apart, expected such scans of "
            f"more subjects than coefficients (there are {len(set(subjects))} subjects); use fewer terms, or levels "
            "that scans with known regions have"
        )
    terms, shared = [str(term) for term in design], _mean_ratio(ratios)
    carried_by = carriers(np.concatenate(shares)) if shares else np.full(len(terms), np.nan)
    if shared is not None:
        fits = [(names, _with_jackknife(fit, shared, model.within, carried_by)) for names, fit in fits]
    rows = [
        _rows(names, terms, method, pooled, counts)
        for names, fit in fits
        for method, (pooled, counts) in fit.methods.items()
    ]
    table = pd.concat(rows, ignore_index=True)
    table["carriers"] = table["term"].map(dict(zip(terms, carried_by, strict=True)))
    return _with_gain(_adjusted(table))[list(COLUMNS)]


def _varies(values: Doubles) -> Bools:
    """Whether an outcome of completed tables `[M, N, R]` varies by more than rounding `[R]`; a constant has no test."""
    finite = np.isfinite(values)
    low = np.where(finite, values, np.inf).min(axis=(0, 1))
    high = np.where(finite, values, -np.inf).max(axis=(0, 1))
    return np.asarray(high - low > ROUNDING * np.maximum(np.abs(low), np.abs(high)))


class GroupModel:
    """A linear model of N scans, with a random intercept of subjects with several scans.

    Args:
        design: `[N, K]`.
        subjects: subject of each scan.
    """

    def __init__(self, design: Doubles, subjects: NDArray[np.str_]) -> None:
        self.design, self.subjects = design, subjects

    @property
    def within(self) -> Bools:
        """Whether a term varies between the scans of a subject `[K]`."""
        return np.asarray((pd.DataFrame(self.design).groupby(self.subjects).nunique() > 1).any())

    def fit(self, values: Doubles, rows: Bools) -> Fit:
        """Fit the model to `rows` of outcomes `[..., N, R]`."""
        design, outcomes = self.design[rows], np.moveaxis(values, -2, 0)[rows]
        flat, subjects = outcomes.reshape(len(design), -1), self.subjects[rows]
        repeated = len(set(subjects)) < len(subjects)
        fit = fit_random_intercepts(flat, design, subjects)[:3] if repeated else _least_squares(flat, design)
        coefficients, variances, freedom = (part.reshape(*outcomes.shape[1:], design.shape[1]) for part in fit)
        return coefficients, variances, freedom


class _Fits(NamedTuple):
    """Results of outcomes that are known in the same scans.

    Attributes:
        methods: pooled estimates of each method that can be used, with the numbers of scans and of measured targets.
        ratio: variance by the jackknife over that by Rubin's rules `[R, K]`; None without replicates.
        shares: of the groups in the jackknife's variance `[R, G, K]`; None without replicates.
    """

    methods: dict[str, tuple[Pooled, tuple[int, int]]]
    ratio: Doubles | None
    shares: Doubles | None


def _fit_methods(
    model: GroupModel,
    values: Doubles,
    measured: Bools,
    known: Bools,
    replicates: Replicates | None,
) -> _Fits | None:
    """Fit the model by each method; None if it cannot be fitted to the known scans."""
    counts, least = (int(known.sum()), int(measured.sum())), model.design.shape[1]
    if len(set(model.subjects[known])) <= least or np.linalg.matrix_rank(model.design[known]) < least:
        return None
    methods, ratio, shares, mean = {}, None, None, values.mean(axis=0)
    if counts[0] == counts[1]:  # every target is measured, so the tables are equal
        methods[MULTIPLE] = _alone(model.fit(values[0], known)), counts
    else:
        pooled = pool(*model.fit(values, known))
        methods[MULTIPLE] = pooled, counts
        if replicates is not None:
            estimator = fixed_weights(model.design[known], model.subjects[known], mean[known])
            variance, shares = jackknife(estimator, mean[known], replicates)
            ratio = (variance + pooled.between / len(values)) / np.square(pooled.se)
    if len(set(model.subjects[measured])) > least and np.linalg.matrix_rank(model.design[measured]) == least:
        methods[COMPLETE] = _alone(model.fit(values[0], measured)), (counts[1], counts[1])
    methods[SINGLE] = _alone(model.fit(mean, known)), counts
    return _Fits(methods, ratio, shares)


def _mean_ratio(ratios: Sequence[Doubles]) -> Doubles | None:
    """Mean `[K]` over outcomes of the jackknife's ratios `[R, K]`; None if there is none.

    The jackknife of one outcome rests on few subjects and is noisy; what makes Rubin's rules too wide, or too narrow,
    is alike in all outcomes.
    """
    if not ratios:
        return None
    finite = pd.DataFrame(np.concatenate(ratios)).replace([np.inf, -np.inf], np.nan)  # a term may have no variance
    return finite.mean().to_numpy() if finite.notna().any(axis=None) else None


def _with_jackknife(fit: _Fits, shared: Doubles, within: Bools, carried_by: Doubles) -> _Fits:
    """Scale the variances of Rubin's rules, and keep theirs as a method of its own.

    Args:
        fit: of some outcomes.
        shared: ratio `[K]` of all outcomes.
        within: terms `[K]` for which each outcome has its ratio: how far the rules are off depends there on how alike
            a subject's errors are, which differs between outcomes.
        carried_by: how many subjects carry each term `[K]`.
    """
    if fit.ratio is None:
        return fit
    pooled, counts = fit.methods[MULTIPLE]
    ratio = np.where(within, fit.ratio, shared)
    ratio = np.where(carried_by < LEAST_CARRIERS, np.maximum(ratio, 1), ratio)
    se = pooled.se * np.sqrt(np.where(np.isfinite(ratio), ratio, 1))
    return fit._replace(methods=fit.methods | {MULTIPLE: (pooled._replace(se=se), counts), RUBIN: (pooled, counts)})


def _alone(fit: Fit) -> Pooled:
    """The result of one analysis, of which nothing is missing."""
    coefficients, variances, freedom = fit
    nothing = np.zeros_like(variances)
    return Pooled(coefficients, np.sqrt(variances), freedom, nothing, nothing)


def _least_squares(values: Doubles, design: Doubles) -> Fit:
    """Fit all outcomes `[N, R]` at once; return coefficients, variances and degrees of freedom `[R, K]`."""
    import statsmodels.api as sm

    fit = sm.OLS(values, design).fit()
    coefficients = np.asarray(fit.params).reshape(design.shape[1], -1)  # statsmodels drops the axis of one outcome
    residuals = values - design @ coefficients
    freedom = float(len(design) - design.shape[1])
    scale = np.square(residuals).sum(axis=0) / freedom
    variances = scale[:, None] * np.diag(fit.normalized_cov_params)
    return coefficients.T, variances, np.full_like(variances, freedom)


def _rows(
    regions: Sequence[str], terms: Sequence[str], method: str, pooled: Pooled, counts: tuple[int, int]
) -> pd.DataFrame:
    """Rows of regions and terms but the intercept, from pooled estimates `[R, K]`."""
    low, high = pooled.interval()
    columns = {"estimate": pooled.estimate, "se": pooled.se, "low": low, "high": high, "p": pooled.p()}
    columns |= {"df": pooled.df, "fmi": pooled.fmi}
    names = pd.MultiIndex.from_product([regions, terms], names=["region", "term"])
    table = pd.DataFrame({name: values.reshape(-1) for name, values in columns.items()}, index=names).reset_index()
    table = table.assign(method=method, scans=counts[0], measured=counts[1])
    return pd.DataFrame(table[(table["term"] != INTERCEPT) & np.isfinite(table["se"])])


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """Add the p-values adjusted over regions."""
    from scipy.stats import false_discovery_control

    groups = table.groupby(["term", "method"])["p"]
    return table.assign(
        p_holm=groups.transform(lambda p: holm(p.to_numpy())), q_fdr=groups.transform(false_discovery_control)
    )


def _with_gain(table: pd.DataFrame) -> pd.DataFrame:
    keys = ["region", "term"]
    complete = table[table["method"] == COMPLETE].set_index(keys)["se"]
    reference = complete.reindex(pd.MultiIndex.from_frame(table[keys])).to_numpy()
    gain = np.square(reference / table["se"].to_numpy()) - 1
    # A single imputation's standard error is wrong, and so would be its gain.
    return table.assign(gain=np.where(table["method"].isin([MULTIPLE, RUBIN]), gain, np.nan))
