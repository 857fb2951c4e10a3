"""Imputations of two models on the same simulated studies.

People, hidden PET and random numbers are the same, so that few studies tell how two models differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dualflow.arrays import Bools, Doubles
from dualflow.data.markdown import markdown_table
from dualflow.imputation.study_tables import CONSTANT, FIXED, JACKKNIFE, PROPER, SAMPLES, SINGLE
from dualflow.imputation.validity import EFFECT, NULL_KIND, simulated_by_hiding
from dualflow.imputation.validity_statistics import Estimates, Resamples, Statistic, average
from dualflow.imputation.validity_text import with_error

METHODS = (JACKKNIFE, PROPER, FIXED, SAMPLES, CONSTANT, SINGLE)
"""The methods that depend on the model."""
_SECOND = "second, "


def compare_imputations(first: pd.DataFrame, second: pd.DataFrame, null: str) -> pd.DataFrame:
    """Compare the imputations of two models, one row per way of hiding, outcomes (regions or joint) and method.

    `difference` is the root mean square of the differences of estimates, in standard errors of the first model; it
    contains the noise of the draws. `width` is the geometric mean ratio of the widths of intervals, second over first.
    `error` and `missed` are differences in percentage points: of the type I error, and of the effects that intervals
    miss. `gain` is how many more measured scans the second model's variance over studies is worth, in percent of the
    first's. Monte-Carlo errors `_mc` are those of a jackknife over studies.

    Args:
        first: estimates with their truth, one row per study, way of hiding, method, region and term.
        second: those of the second model, of the same studies.
        null: the term without an effect.
    """
    rows = []
    both = pd.concat([first, second.assign(method=_SECOND + second["method"])], ignore_index=True)
    for hidden, simulated in simulated_by_hiding(both, null):
        for outcomes, chosen in {"regions": ~simulated.joint, "joint": simulated.joint}.items():
            if not chosen.any():
                continue
            for method in METHODS:
                pair = [simulated.estimates(name).chosen(chosen) for name in (method, _SECOND + method)]
                kinds = {kind: is_kind[chosen] for kind, is_kind in simulated.kinds.items()}
                statistics = _statistics(pair[0], pair[1], simulated.truth[chosen], kinds)
                row: dict[str, str | float] = {"hidden": hidden, "outcomes": outcomes, "method": method}
                for name, statistic in statistics.items():
                    row |= {name: statistic.value, f"{name}_mc": statistic.error}
                rows.append(row)
    return pd.DataFrame(rows).round(4)


def _statistics(
    first: Estimates, second: Estimates, truth: Doubles, kinds: Mapping[str, Bools]
) -> dict[str, Statistic]:
    resamples, effect = Resamples(len(first.estimate)), kinds[EFFECT]
    claimed = resamples.mean(np.square(first.se))
    squares = resamples.mean(np.square(second.estimate - first.estimate))
    widths = (second.high - second.low) / (first.high - first.low)
    excluded = resamples.mean(second.excludes(truth) - first.excludes(truth))
    spreads = [resamples.variance(one.estimate)[:, effect] / claimed[0, effect] for one in (first, second)]
    return {
        "difference": resamples.statistic(np.sqrt(average(squares / claimed))),
        "width": resamples.statistic(np.exp(average(resamples.mean(np.log(widths))))),
        "error": resamples.statistic(average(excluded[:, kinds[NULL_KIND]])),
        "missed": resamples.statistic(average(excluded[:, effect])),
        "gain": resamples.statistic(100 * (average(spreads[0]) / average(spreads[1]) - 1)),
    }


def comparison_markdown(comparison: pd.DataFrame, model: str, first: str) -> str:
    """Return a table for each way of hiding and kind of outcomes.

    Args:
        comparison: of `compare_imputations`.
        model: name of the second model.
        first: name of the first model.
    """
    parts = []
    for (hidden, outcomes), part in comparison.groupby(["hidden", "outcomes"], sort=False):
        rows = [["method", "difference, SE", "width, ratio", "type I error, points", "missed, points", "gain, %"]]
        for row in part.to_dict("records"):
            cells = [with_error(row, name, 2) for name in ("difference", "width")]
            cells += [with_error(row, name, 1) for name in ("error", "missed", "gain")]
            rows.append([str(row["method"]), *cells])
        parts.append(f"{model} against {first}, {outcomes}, PET hidden {hidden}:\n\n{markdown_table(rows)}\n")
    return "\n".join(parts)
