"""Compare all models of a study: summary tables, the HTML report, and the MLflow run above those of the models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import yaml

from dualflow.commands.ceilings import CEILINGS
from dualflow.commands.model_runs import picture_link
from dualflow.commit import commit_text
from dualflow.config import Config, dump_sections, public_values
from dualflow.data.dataset import PairDataset
from dualflow.data.quarantine import read_quarantine
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.data.tsv import table_text
from dualflow.inference.predict import load_predictor
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.report.likelihood_tables import check_condition
from dualflow.report.study_page import ReportData, render
from dualflow.report.study_results import StudyResults, gather_results
from dualflow.report.study_sections import section_figures, section_tables
from dualflow.report.study_text import method_text, provenance, study_facts, study_title, subject_count
from dualflow.report.summary_text import limitations, summary_sentences
from dualflow.tracking.sync import sync, warn_unsent
from dualflow.tracking.tracked_run import Run, group_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(config: Config) -> None:
    """Write the summary tables and the HTML report of a study.

    Raises:
        DataError: no test scan was scored.
    """
    import matplotlib

    matplotlib.use("Agg")
    layout, main = config.layout, config.model.preset
    results = gather_results(config, CEILINGS)
    pairs = usable_pairs(config)
    predictor = load_predictor(layout.model(main, config.train.seeds[0]))
    test = load_split(config, pairs, "test", predictor.card.side)
    figures = section_figures(config, results, predictor, test)
    excluded = read_quarantine(layout.quarantine)
    sentences = summary_sentences(
        results.summary,
        results.differences,
        check_condition(results.scores, main),
        model=main,
        row=modality(config.study.target),
        mean_target=_mean_target(test),
        blurred=check_condition(results.scores, main, "nll_blurred"),
        stress=results.stress,
    )
    render(
        ReportData(
            title=study_title(config),
            facts=study_facts(config, pairs, len(excluded)),
            summary=sentences,
            excluded=pd.DataFrame([vars(entry) for entry in excluded], columns=["scan", "step", "reason"]),
            method=method_text(config),
            limitations=limitations(simulated=config.embedded, subjects=subject_count(pairs, "test")),
            provenance=provenance(config, results.cards),
            tables=section_tables(config, results),
            figures=figures,
        ),
        layout.report,
    )
    for name, table in results.tables.items():
        commit_text(layout.table(name), table_text(table))
    inputs = {name: card.weights_sha256 for name, card in results.cards.items()}
    with group_run(config.tracking, config.study.name, layout.pending_records) as run:
        _log(run, config, results, sentences, figures)
        run.finish()
        write_manifest(
            layout.manifest("report"),
            step="report",
            outputs={**{name: layout.table(name) for name in results.tables}, "report": layout.report},
            inputs=inputs,
            config=dump_sections(config.evaluate),
        )
    # After this run, whose end may be queued by a process that was killed: it is continued, not ended.
    sync(config.tracking, layout.pending_records)
    warn_unsent(layout.pending_records)


def _mean_target(test: PairDataset) -> float:
    return float(np.mean([item["target"][item["mask"]].mean() for item in test.items]))


def _log(
    run: Run, config: Config, results: StudyResults, sentences: list[str], figures: dict[str, list[tuple[str, Figure]]]
) -> None:
    """Log pages, tables and figures; the scores of each model are on its own run."""
    run.text(yaml.safe_dump(public_values(config), sort_keys=False), "config.yaml")
    for name, table in results.tables.items():
        run.text(table_text(table), f"tables/{name}.tsv")
    for section, entries in figures.items():
        for index, (_, figure) in enumerate(entries):
            run.figure(figure, f"figures/{section}_{index}.png")
    for page in (config.layout.report, config.layout.qc):
        run.file(page)
    pictures = [
        picture_link(f"figures/{section}_0.png", caption)
        for section, caption in (("comparison", "Scores of all models"), ("subjects", "A held-out scan"))
        if figures.get(section)
    ]
    run.describe("\n\n".join([f"**{study_title(config)}**", *sentences, *pictures]) + "\n")
