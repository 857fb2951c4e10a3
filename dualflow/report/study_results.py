"""Results of a whole study: the scores of all models, and the tables computed from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dualflow.config import Config
from dualflow.data.tsv import read_typed_table
from dualflow.errors import DataError
from dualflow.evaluation.statistics import differences, summarise
from dualflow.evaluation.study_metrics import with_true_spread
from dualflow.layout import Layout, training_key
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card
from dualflow.report.likelihood_tables import likelihood_summary, stress_totals

BOUNDS = "limits that only a simulation knows"
"""What captions say of `StudyResults.ceilings`."""


@dataclass(frozen=True)
class StudyResults:
    """Scores of a study and the tables computed from them.

    Attributes:
        scores: one row per model, seed and held-out scan.
        summary: means with intervals, from `summarise`.
        differences: paired differences to the main model, from `differences`.
        likelihood: likelihood and sample quality per flow, from `likelihood_summary`.
        stress: totals of the stress tests per flow; None without stress tests.
        cards: model cards by model and seed.
        ceilings: names of the limits among the models.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    likelihood: pd.DataFrame
    stress: pd.DataFrame | None
    cards: dict[str, ModelCard]
    ceilings: tuple[str, ...]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables to write, by name."""
        return {"summary": self.summary, "differences": self.differences, "likelihood": self.likelihood}


def gather_results(config: Config, ceilings: Collection[str]) -> StudyResults:
    """Read the scores of every model and compare the models.

    Args:
        config: configuration of the study.
        ceilings: names of the limits in the table of ceilings; they take part in no paired comparison.

    Raises:
        DataError: a table is missing, or no test scan was scored.
    """
    layout, models = config.layout, config.trainings
    scores = pd.concat(
        [read_result(layout.table(f"scans_{training_key(name, seed)}")) for name, seed in models]
        + [read_result(layout.table("scans_ceilings"))]
    )
    if scores.empty:
        raise DataError(f"{config.study.name}: no test scan was scored; give split.test a share or name test_subjects")
    scores = with_true_spread(scores)
    bootstrap, seed = config.evaluate.bootstrap, config.evaluate.seed
    trained = scores[~scores["model"].isin(list(ceilings))]
    return StudyResults(
        scores=scores,
        summary=summarise(scores, bootstrap=bootstrap, seed=seed),
        differences=differences(trained, config.model.preset, bootstrap=bootstrap, seed=seed),
        likelihood=likelihood_summary(scores, list(config.flows)),
        stress=_stress_totals(config),
        cards={f"{name} seed {seed}": load_card(layout.model(name, seed)) for name, seed in models},
        ceilings=tuple(ceilings),
    )


def read_result(path: Path) -> pd.DataFrame:
    """Read a table that evaluation wrote.

    Raises:
        DataError: the table is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: is missing; `dualflow run` evaluates the models and writes it")
    return read_typed_table(path)


def read_verdicts(layout: Layout) -> dict[str, str]:
    """Verdicts of the study's conversion by scan.

    Raises:
        DataError: the table of the conversion is missing.
    """
    table = read_result(layout.conversions)
    return dict(zip(table["scan"].astype(str), table["verdict"].astype(str), strict=True))


def _stress_totals(config: Config) -> pd.DataFrame | None:
    if not config.evaluate.stress:
        return None
    flows = [(name, seed) for name in config.flows for seed in config.train.seeds]
    return stress_totals(
        pd.concat([read_result(config.layout.stress(name, seed)).assign(model=name) for name, seed in flows])
    )
