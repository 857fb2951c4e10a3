"""Section of the report on group analyses: pooled effects of every analysis of the configuration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from dualflow.config import Config
from dualflow.data.markdown import p_value
from dualflow.data.tsv import read_typed_table
from dualflow.evaluation.statistics import SIGNIFICANT
from dualflow.imaging.regions import region_map
from dualflow.imputation.group_models import ANALYSIS_TABLE, MULTIPLE
from dualflow.modalities import modality
from dualflow.report.group_figures import SHOWN as REGIONS_SHOWN
from dualflow.report.group_figures import forest
from dualflow.report.report_figure import ReportFigure
from dualflow.report.tables import Table, plain_table

SHOWN = 8
"""Outcomes of a term in the table."""
CHOSEN = f"Of each term, the {SHOWN} outcomes with the smallest p at most."
DRAWN = (
    "Effects are means over the imputed tables, with 95 % intervals by a jackknife over subjects (Rubin's rules if a "
    "term cannot be estimated without one of them)"
)
MEASURED = "Every target is measured, so nothing is imputed; 95 % intervals are those of the models"
"""What is said in place of `DRAWN` if nothing was drawn."""
NOTE = (
    "p adjusted over outcomes by Holm, and the false discovery rate (Benjamini and Hochberg). Missing information: the "
    "share of the uncertainty that the unmeasured targets cause. Gain: how many more measured targets the result is "
    "worth, against complete cases."
)


def analysis_tables(config: Config) -> list[Table]:
    """Per analysis, the outcomes with the smallest p-values of each term."""
    return [
        plain_table(_rows(table), f"{name}: suvr ~ {formula.rpartition('~')[2].strip()}. {_note(table)}", digits=4)
        for name, formula, table in _analyses(config)
    ]


def analysis_figures(config: Config) -> list[ReportFigure]:
    """Per analysis, a forest plot of meta-regions and of the regions with the smallest p-values."""
    unit, atlas = modality(config.study.target).unit, region_map(config.preprocess).names
    figures = []
    for name, _, table in _analyses(config):
        terms = list(dict.fromkeys(table["term"]))
        pooled = table[table["method"] == MULTIPLE]
        counts = ", ".join(
            f"{term} {int((rows['q_fdr'] < SIGNIFICANT).sum())} of {len(rows)}"
            for term, rows in pooled.groupby("term", sort=False)
        )
        compared = "The intervals of single imputation are too narrow and shown to compare only."
        if not _is_drawn(table):
            compared = "Every target is measured, so all three are the same."
        caption = (
            f"Analysis {name}: effect of each term on regions, with 95 % intervals, by multiple imputation, complete "
            f"cases and single imputation. {compared} "
            f"Rows: outcomes of several regions, then the {REGIONS_SHOWN} regions with the smallest p of {terms[0]} at "
            "most, sorted by its effect."
        )
        alt = f"Forest plot of {', '.join(terms)}; outcomes with a false discovery rate below 5 %: {counts}."
        figure = forest(table, atlas, unit)
        figures.append(ReportFigure(f"analysis-{name}", figure, caption, alt))
    return figures


def _analyses(config: Config) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name, formula and table of every analysis of the configuration."""
    for name, formula in (config.impute.analyses if config.impute else {}).items():
        yield name, formula, read_typed_table(config.layout.analysis(name) / ANALYSIS_TABLE)


def _note(table: pd.DataFrame) -> str:
    """What the caption of an analysis says of its effects."""
    return f"{CHOSEN} {DRAWN if _is_drawn(table) else MEASURED}; {NOTE}"


def _is_drawn(table: pd.DataFrame) -> bool:
    """Whether an analysis has scans without a measured target."""
    pooled = table[table["method"] == MULTIPLE]
    return bool((pooled["measured"] < pooled["scans"]).any())


def _rows(table: pd.DataFrame) -> pd.DataFrame:
    pooled = table[table["method"] == MULTIPLE]
    chosen = pd.concat([rows.nsmallest(SHOWN, "p") for _, rows in pooled.groupby("term", sort=False)])
    interval = [f"{low:.3g} to {high:.3g}" for low, high in zip(chosen["low"], chosen["high"], strict=True)]
    return pd.DataFrame(
        {
            "Term": chosen["term"],
            "Outcome": chosen["region"],
            "Effect": [f"{value:.3g}" for value in chosen["estimate"]],
            "95 % interval": interval,
            "p, Holm": [p_value(value, 4) for value in chosen["p_holm"]],
            "FDR": [p_value(value, 4) for value in chosen["q_fdr"]],
            "Missing information": chosen["fmi"].round(2),
            "Gain": [f"{gain:+z.0%}" if np.isfinite(gain) else "-" for gain in chosen["gain"]],
        }
    )
