"""Validity of ways to complete a study, from simulated studies with known effects."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dualflow.data.markdown import markdown_table
from dualflow.imputation.group_models import COMPLETE

LARGE = 0.5
"""An effect is large if it exceeds this share of the largest of its term."""


def summarise_validity(table: pd.DataFrame, null: str) -> pd.DataFrame:
    """Validity of each method, one row per way of hiding, method and kind of term (`null` or `effect`).

    `excluded` is the percentage of 95 % intervals without the truth, which for a null term is the type I error. `bias`
    is the root mean square over regions and terms of the mean error, in standard errors, without its Monte-Carlo part.
    `width` is the mean width of the intervals relative to that of complete cases, and `gain` how many more measured
    scans the variance is worth. `found` is the percentage of intervals of large effects that exclude 0. Monte-Carlo
    errors `_mc` are those of means over studies.

    Args:
        table: estimates with their truth, one row per study, way of hiding, method, region and term.
        null: the term without an effect.
    """
    table = table.assign(kind=np.where(table["term"] == null, "null", "effect"))
    keys = ["hidden", "study", "region", "term"]
    reference = table[table["method"] == COMPLETE].set_index(keys)[["low", "high"]].add_suffix("_complete")
    table = table.join(reference, on=keys)
    table["excluded"] = 100.0 * ((table["low"] > table["truth"]) | (table["high"] < table["truth"]))
    largest = table["truth"].abs().groupby(table["term"]).transform("max")
    excludes_0 = 100.0 * ((table["low"] > 0) | (table["high"] < 0))
    table["found"] = excludes_0.where(table["truth"].abs() > LARGE * largest)
    table["width"] = (table["high"] - table["low"]) / (table["high_complete"] - table["low_complete"])
    rows = []
    for (hidden, kind, method), group in table.groupby(["hidden", "kind", "method"], sort=False):
        by_study = group.groupby("study")[["excluded", "width", "found"]].mean()
        count = len(by_study)
        errors = (group["estimate"] - group["truth"]).groupby([group["region"], group["term"]]).agg(["mean", "var"])
        spread = (group["se"] ** 2).groupby([group["region"], group["term"]]).mean()
        # Variances of the estimates over studies, and not the claimed ones, tell what a method is worth.
        bias = ((errors["mean"] ** 2 - errors["var"] / count) / spread).mean()
        rows.append(
            {
                "hidden": hidden,
                "kind": kind,
                "method": method,
                "excluded": by_study["excluded"].mean(),
                "excluded_mc": by_study["excluded"].std(ddof=1) / np.sqrt(count),
                "bias": np.sqrt(max(bias, 0.0)),
                "variance": errors["var"].mean(),
                "found": by_study["found"].mean(),
                "width": by_study["width"].mean(),
                "width_mc": by_study["width"].std(ddof=1) / np.sqrt(count),
                "studies": count,
            }
        )
    summary = pd.DataFrame(rows)
    complete = summary[summary["method"] == COMPLETE].set_index(["hidden", "kind"])["variance"]
    reference_variance = complete.reindex(pd.MultiIndex.from_frame(summary[["hidden", "kind"]])).to_numpy()
    summary["gain"] = 100 * (reference_variance / summary["variance"] - 1)
    return summary.round(4)


def validity_markdown(summary: pd.DataFrame) -> str:
    """Return a table for each way of hiding."""
    texts = []
    for hidden, part in summary.groupby("hidden", sort=False):
        rows = [["method", "type I error, %", "effects missed by 95 % intervals, %", "bias, SE", "width", "gain, %",
                 "large effects found, %"]]  # fmt: skip
        for method, group in part.groupby("method", sort=False):
            kinds = group.set_index("kind")
            null, effect = kinds.loc["null"], kinds.loc["effect"]
            rows.append(
                [
                    str(method),
                    *(f"{row['excluded']:.1f} ± {row['excluded_mc']:.1f}" for row in (null, effect)),
                    f"{effect['bias']:.2f}",
                    f"{effect['width']:.2f}",
                    f"{effect['gain']:+.0f}",
                    f"{effect['found']:.0f}",
                ]
            )
        texts.append(f"PET hidden {hidden}:\n\n{markdown_table(rows)}\n")
    return "\n".join(texts)
