"""Validity of ways to complete a study, from simulated studies with known effects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.imputation.group_models import COMPLETE
from dualflow.imputation.joint_outcomes import JOINT
from dualflow.imputation.study_tables import ALL
from dualflow.imputation.validity_statistics import LARGE, Estimates, Statistic, validity_statistics

NULL_KIND, EFFECT = "null", "effect"
"""Kinds of terms: without and with an effect."""


class Simulated:
    """Estimates of simulated studies with one way of hiding, as arrays.

    Args:
        table: estimates with their truth, one row per study, method, region and term.
        null: the term without an effect.

    Attributes:
        methods: in the order of the table.
        regions: region or joint outcome of each coefficient `[K]`.
        truth: true effect of each coefficient `[K]`.
        joint: whether it is one of a joint outcome `[K]`.
        large: whether it is a large effect `[K]`; none of a joint outcome is.
        kinds: coefficients of each kind of term `[K]`.
    """

    def __init__(self, table: pd.DataFrame, null: str) -> None:
        coefficients = table[["region", "term", "truth"]].drop_duplicates(["region", "term"])
        self.joint = coefficients["region"].isin(JOINT).to_numpy()
        # An effect is large beside others of its unit, which a joint outcome has not.
        size = coefficients["truth"].abs().mask(self.joint)
        self.methods = list(dict.fromkeys(table["method"]))
        self.regions = coefficients["region"].to_numpy()
        self.truth = coefficients["truth"].to_numpy(np.float64)
        self.large = (size > LARGE * size.groupby(coefficients["term"]).transform("max")).to_numpy()
        is_null = (coefficients["term"] == null).to_numpy()
        self.kinds = {NULL_KIND: is_null, EFFECT: ~is_null}
        self._studies = sorted(set(table["study"]))
        index = pd.MultiIndex.from_frame(coefficients[["region", "term"]])
        self._estimates = {method: self._arrays(part, index) for method, part in table.groupby("method")}

    def __len__(self) -> int:
        """Number of studies."""
        return len(self._studies)

    def estimates(self, method: str) -> Estimates:
        """The estimates of a method."""
        return self._estimates[method]

    def statistics(self, method: str, chosen: NDArray[np.bool_]) -> dict[str, Statistic]:
        """Statistics of a method from the `chosen` coefficients `[K]`."""
        truth = self.truth[chosen]
        one, complete, full = (self.estimates(name).chosen(chosen) for name in (method, COMPLETE, ALL))
        reference = np.broadcast_to(truth, full.estimate.shape) if method == ALL else full.estimate
        return validity_statistics(one, complete, reference, truth, self.large[chosen])

    def _arrays(self, part: pd.DataFrame, coefficients: pd.MultiIndex) -> Estimates:
        wide = [part.pivot(index="study", columns=["region", "term"], values=name) for name in Estimates._fields]
        whole = [values.reindex(index=self._studies, columns=coefficients) for values in wide]
        return Estimates(*(values.to_numpy(np.float64) for values in whole))


def simulated_by_hiding(table: pd.DataFrame, null: str) -> Iterator[tuple[str, Simulated]]:
    """Yield the estimates of each way of hiding."""
    for hidden, part in table.groupby("hidden", sort=False):
        yield str(hidden), Simulated(part, null)


def summarise_validity(table: pd.DataFrame, null: str) -> pd.DataFrame:
    """Validity of each method over all regions, one row per way of hiding, kind of term and method.

    A term has the kind `null` or `effect`. Columns are those of `validity_statistics`, each with its Monte-Carlo error
    `_mc`, and the numbers of studies and of intervals.

    Args:
        table: estimates with their truth, one row per study, way of hiding, method, region and term.
        null: the term without an effect.
    """
    rows = [
        {"hidden": hidden, "kind": kind, "method": method, **_columns(simulated, method, chosen & ~simulated.joint)}
        for hidden, simulated in simulated_by_hiding(table, null)
        for kind, chosen in simulated.kinds.items()
        for method in simulated.methods
    ]
    return pd.DataFrame(rows).round(4)


def summarise_regions(table: pd.DataFrame, null: str) -> pd.DataFrame:
    """Validity of each method in each region and joint outcome: as `summarise_validity`, with a column `region`."""
    rows = [
        {"hidden": hidden, "kind": kind, "method": method, "region": region,
         **_columns(simulated, method, chosen & (simulated.regions == region))}
        for hidden, simulated in simulated_by_hiding(table, null)
        for kind, chosen in simulated.kinds.items()
        for method in simulated.methods
        for region in dict.fromkeys(simulated.regions)
    ]  # fmt: skip
    return pd.DataFrame(rows).round(4)


def _columns(simulated: Simulated, method: str, chosen: NDArray[np.bool_]) -> dict[str, float]:
    parts = [{name: one.value, f"{name}_mc": one.error} for name, one in simulated.statistics(method, chosen).items()]
    intervals = int(np.isfinite(simulated.estimates(method).chosen(chosen).low).sum())
    return {name: value for part in parts for name, value in part.items()} | {
        "studies": len(simulated),
        "intervals": intervals,
    }
