"""Region values of a study, measured where there is a target and drawn where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from dualflow.arrays import Bools, Doubles
from dualflow.errors import DataError
from dualflow.imputation.formula import Formula
from dualflow.imputation.proper_draws import RegionScans, explained_share, least_scans, proper_draws
from dualflow.imputation.region_values import RegionValues, chosen_scans
from dualflow.imputation.replicates import MOST_GROUPS, Replicates, replicate, subject_groups
from dualflow.layout import Scan
from dualflow.progress import track

GROUPINGS = 5
"""Groupings of the subjects of a large study that are tried for the jackknife."""


@dataclass
class StudyRegions:
    """Region values of the scans of a study.

    Attributes:
        keys: keys of the scans.
        values: of each scan.
        cross_fitted: whether the prediction of a scan comes from a fit without it.
        weights: weights of the meta-regions in each scan, `[G, R]`.
    """

    keys: list[str] = field(default_factory=list)
    values: list[RegionValues] = field(default_factory=list)
    cross_fitted: list[bool] = field(default_factory=list)
    weights: list[Doubles] = field(default_factory=list)

    @property
    def subjects(self) -> list[str]:
        """Label of the subject of each scan."""
        return [Scan.parse(key).subject for key in self.keys]

    @property
    def observed(self) -> Bools:
        """Whether the target of a scan was measured `[N]`."""
        return np.array([np.isfinite(one.measured).any() for one in self.values])

    def with_meta_regions(self, values: Doubles) -> Doubles:
        """Append the meta-regions to region values `[M, N, R]`."""
        return add_meta_regions(values, np.stack(self.weights))


def add_meta_regions(values: Doubles, weights: Doubles) -> Doubles:
    """Append the meta-regions with weights `[N, G, R]` to region values `[M, N, R]`."""
    known = np.isfinite(values)
    means = np.einsum("mnr,ngr->mng", np.where(known, values, 0.0), weights)
    # A region outside a scan's mask has weight 0 there.
    incomplete = np.einsum("mnr,ngr->mng", ~known, weights > 0) > 0
    return np.concatenate([values, np.where(incomplete, np.nan, means)], axis=2)


@dataclass(frozen=True)
class Completed:
    """Completed tables of N scans, with R regions and then the meta-regions.

    Attributes:
        values: `[M, N, R + G]`.
        replicates: of the drawn values; None if nothing was drawn, or too few subjects inform a term.
        facts: how the values were drawn.
    """

    values: Doubles
    replicates: Replicates | None
    facts: Mapping[str, object]


def complete(study: StudyRegions, formula: Formula, table: pd.DataFrame, draws: int, seed: int) -> Completed:
    """Keep measured regions and draw the others.

    Args:
        study: region values of the scans.
        formula: terms of the imputation.
        table: side information of the scans, in the same order.
        draws: number of completed tables M.
        seed: of the draws.

    Raises:
        DataError: too few targets are measured, or none in some group.
    """
    measured = np.stack([one.measured for one in study.values])
    observed, replicates = study.observed, None
    values = np.repeat(measured[None], draws, axis=0)
    facts: dict[str, object] = {"Terms": formula.text, "References": dict(formula.references), "Draws": draws}
    if not observed.all():
        # A scan with unknown side information counts as an average one; an analysis of that column leaves it out.
        filled = formula.without_gaps(table)
        terms = formula.design(filled)
        described = table[list(formula.variables)].notna().all(axis=1).to_numpy()
        informs = observed & np.array(study.cross_fitted) & described
        _require_informing(study, informs, len(terms.columns), formula)
        _require_groups(filled, informs, formula)
        known, used = chosen_scans(study.values, terms, informs), measured[informs]
        missing = chosen_scans(study.values, terms, ~observed)
        values[:, ~observed] = proper_draws(used, known, missing, seed)
        replicates = _replicates(study, used, known, missing, informs, seed)
        if replicates is None:
            _require_independent(study)
        facts |= {"Measured": int(observed.sum()), "Learnt": len(used), "Drawn": int((~observed).sum())}
        facts["ExplainedByModel"] = round(explained_share(used, known), 4)
    facts["Replicates"] = replicates is not None
    return Completed(study.with_meta_regions(values), replicates, facts)


def _replicates(
    study: StudyRegions,
    measured: Doubles,
    known: RegionScans,
    missing: RegionScans,
    informs: Bools,
    seed: int,
) -> Replicates | None:
    """Replicates of all scans, also of the meta-regions.

    A group of several subjects may hold all that a term depends on; other groups are tried then.
    """
    subjects = study.subjects
    attempts = GROUPINGS if len(set(subjects)) > MOST_GROUPS else 1
    groups = (subject_groups(subjects, attempt) for attempt in range(attempts))
    tried = (replicate(measured, known, missing, informs, ~study.observed, group, seed, _shown) for group in groups)
    result = next((one for one in tried if one is not None), None)
    if result is None:
        return None
    left_out, shrinkage = study.with_meta_regions(result.left_out), study.with_meta_regions(result.shrinkage)
    return replace(result, left_out=left_out, shrinkage=shrinkage)


def _shown(groups: Sequence[int]) -> Iterable[int]:
    return track(groups, "impute without each subject")


def _require_informing(study: StudyRegions, informs: Bools, terms: int, formula: Formula) -> None:
    """Name the cause if too few measured people inform the draws: the model learnt from them, or all lack a value."""
    used, least = len(set(np.array(study.subjects)[informs])), least_scans(terms)
    seen = int((study.observed & ~np.array(study.cross_fitted)).sum())
    if seen and used < least:
        raise DataError(
            f"the model learnt from {seen} of the measured scans without a cross-fit, and {used} others are too few "
            f"for {terms} terms; choose a model with a closed-form mean (stacked or local_linear), or larger splits"
        )
    if not used:
        raise DataError(
            f"no measured scan has known values of all of {formula.text}; leave the unknown column out of impute.terms"
        )
    if used < min(least, int(informs.sum())):
        raise DataError(
            f"{int(informs.sum())} measured scans are of {used} subjects, expected at least {least} subjects for "
            f"{terms} terms, because sessions of one subject do not tell how subjects differ; use fewer terms"
        )


def _require_independent(study: StudyRegions) -> None:
    """Refuse draws without a jackknife for subjects with several sessions."""
    if repeated := len(study.subjects) - len(set(study.subjects)):
        raise DataError(
            f"{repeated} scans are further sessions, and a term of the imputation depends on a single measured "
            "subject, so that no jackknife is possible and Rubin's rules, which take sessions for independent, would "
            "give intervals that are far too narrow; use fewer terms, or merge a level that one measured subject has"
        )


def _require_groups(table: pd.DataFrame, informs: Bools, formula: Formula) -> None:
    """Name a group of which no measured scan informs the draws."""
    for name in formula.variables:
        if formula.is_number(table[name]):
            continue
        if absent := sorted(set(table[name]) - set(table.loc[informs, name])):
            raise DataError(
                f"{name} = {absent[0]}: none of the {int(informs.sum())} measured scans that inform the draws is of "
                f"this group; merge it with another, or leave {name} out of impute.terms"
            )
