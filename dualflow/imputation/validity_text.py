"""The validity of ways to complete a study as Markdown: over all regions, and how it varies between them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dualflow.data.markdown import markdown_table
from dualflow.imputation.joint_outcomes import JOINT
from dualflow.imputation.study_tables import JACKKNIFE
from dualflow.imputation.validity import EFFECT, NULL_KIND

NOMINAL = 5.0
"""Percentage of 95 % intervals that may miss the truth."""
LEAST_GAIN = 20.0
"""Gain over complete cases, in percent, that justifies an imputation."""
HEADINGS = ("type I error, %", "missed, %", "bias, SE", "SE / SD", "width", "gain, %")
ENDS = (0.05, 0.95)
"""Quantiles over regions."""


def validity_markdown(summary: pd.DataFrame, regions: pd.DataFrame) -> str:
    """Return a table for each way of hiding, how regions differ, and a table of the joint outcomes.

    Args:
        summary: of `summarise_validity`.
        regions: of `summarise_regions`.
    """
    parts = []
    for hidden, part in summary.groupby("hidden", sort=False):
        here = regions[regions["hidden"] == hidden]
        joint = here["region"].isin(JOINT)
        lines = region_lines(here[~joint], JACKKNIFE)
        parts.append(f"PET hidden {hidden}:\n\n{_table(part)}\n\n" + "\n".join(lines) + "\n")
        if joint.any():
            parts.append(f"Joint outcomes, PET hidden {hidden}:\n\n{_joint_table(here[joint])}\n")
    return "\n".join(parts)


def _table(part: pd.DataFrame) -> str:
    rows = [["method", *HEADINGS, "found, %"]]
    for method, group in part.groupby("method", sort=False):
        _, effect = _kinds(group)
        rows.append([str(method), *_cells(group), with_error(effect, "found", 0)])
    return markdown_table(rows)


def _joint_table(part: pd.DataFrame) -> str:
    rows = [["outcome: method", *HEADINGS]]
    for outcome, rows_of_outcome in part.groupby("region", sort=False):
        for method, group in rows_of_outcome.groupby("method", sort=False):
            rows.append([f"{outcome}: {method}", *_cells(group)])
    return markdown_table(rows)


def _cells(group: pd.DataFrame) -> list[str]:
    """The cells below HEADINGS."""
    null, effect = _kinds(group)
    cells = [with_error(null, "excluded", 1), with_error(effect, "excluded", 1)]
    return [
        *cells,
        *(with_error(effect, name, 2) for name in ("bias", "ratio", "width")),
        with_error(effect, "gain", 0),
    ]


def _kinds(group: pd.DataFrame) -> tuple[Mapping[Hashable, Any], Mapping[Hashable, Any]]:
    """The rows of the null term and of the effects."""
    kinds = group.set_index("kind").to_dict("index")
    return kinds[NULL_KIND], kinds[EFFECT]


def with_error(row: Mapping[Hashable, Any], name: str, digits: int) -> str:
    """A statistic of a row with its Monte-Carlo error."""
    return f"{row[name]:z.{digits}f} ± {row[f'{name}_mc']:.{digits}f}"


def region_lines(regions: pd.DataFrame, method: str) -> list[str]:
    """Say how a method varies between regions, beside the variation by chance alone.

    Args:
        regions: of `summarise_regions`, of one way of hiding.
        method: the method.
    """
    rows = regions[regions["method"] == method]
    null, effect = rows[rows["kind"] == NULL_KIND], rows[rows["kind"] == EFFECT]
    error, missed = (_percent(*part["excluded"].quantile(ENDS)) for part in (null, effect))
    chance, chance_of_missed = (_percent(*_by_chance(int(part["intervals"].median()))) for part in (null, effect))
    return [
        f"- {method}, 5 to 95 % of {len(null)} regions: type I error {error} (by chance alone {chance}), missed "
        f"{missed} (by chance alone {chance_of_missed}).",
        f"- Its intervals are narrower than those of complete cases in {100 * (effect['width'] < 1).mean():.0f} % of "
        f"the regions, and its gain is at least {LEAST_GAIN:.0f} % in {100 * (effect['gain'] >= LEAST_GAIN).mean():.0f}"
        f" % of them; the gain of a single region has a Monte-Carlo error of {effect['gain_mc'].median():.0f}.",
    ]


def _by_chance(intervals: int) -> tuple[float, float]:
    """Ends of the percentage of independent intervals that miss, if they are right."""
    from scipy.stats import binom

    low, high = 100 * np.asarray(binom.ppf(ENDS, intervals, NOMINAL / 100)) / intervals
    return float(low), float(high)


def _percent(low: float, high: float) -> str:
    return f"{low:.1f} to {high:.1f} %"
