"""Compare all models of a study: summary tables, the HTML report, and the MLflow run above those of the models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from dualflow.commands.model_runs import picture_link, run_label
from dualflow.commit import commit_text
from dualflow.config import CEILINGS, Config, dump_sections, public_values
from dualflow.data.dataset import PairDataset
from dualflow.data.quarantine import read_quarantine
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.data.tsv import table_text
from dualflow.evaluation.native import native_scores
from dualflow.imaging.intensity import scored_voxels
from dualflow.inference.predict import load_predictor
from dualflow.layout import Layout
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.report.likelihood_tables import check_condition
from dualflow.report.references import study_references
from dualflow.report.region_agreement import NAME as AGREEMENT
from dualflow.report.region_agreement import study_agreement
from dualflow.report.report_figure import FILED, ReportFigure
from dualflow.report.run_description import run_description
from dualflow.report.study_page import ReportData, render
from dualflow.report.study_results import StudyResults, gather_results, read_verdicts
from dualflow.report.study_sections import section_tables, study_groups
from dualflow.report.study_text import (
    linked_files,
    method_text,
    provenance,
    study_facts,
    study_title,
    subject_count,
)
from dualflow.report.summary_text import limitations, summary_sentences
from dualflow.tracking.sync import sync, warn_unsent
from dualflow.tracking.tracked_run import Run, group_run

if TYPE_CHECKING:  # matplotlib's backend is chosen before figures are imported
    from dualflow.report.subject_views import SubjectViews


def report(config: Config) -> None:
    """Write the summary tables and the HTML report of a study.

    Raises:
        DataError: no test scan was scored.
    """
    import matplotlib

    matplotlib.use("Agg")
    from dualflow.report.study_figures import study_figures
    from dualflow.report.subject_views import subject_views

    layout, main = config.layout, config.model.preset
    results, verdicts = gather_results(config, CEILINGS), read_verdicts(layout)
    pairs = usable_pairs(config)
    predictor = load_predictor(layout.model(main, config.train.seeds[0]))
    test = load_split(config, pairs, "test", predictor.card.side)
    test_pairs = pairs[pairs["split"] == "test"]
    views = subject_views(config, results.scores, test_pairs, predictor, test, verdicts)
    figures = study_figures(config, results, test_pairs) | {"subjects": views.figures}
    groups, native = study_groups(config, results, pairs), native_scores(config, test.scans)
    agreement = study_agreement(config)
    filed = _write_figures(layout, views.median, [figure for part in figures.values() for figure in part])
    tables = results.tables | {"groups": groups, "native": native, AGREEMENT: agreement}
    for name, table in tables.items():
        commit_text(layout.table(name), table_text(table))
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
            facts=study_facts(config, pairs, len(excluded), verdicts),
            summary=sentences,
            excluded=pd.DataFrame([vars(entry) for entry in excluded], columns=["scan", "step", "reason"]),
            method=method_text(config),
            limitations=limitations(simulated=config.embedded, subjects=subject_count(pairs, "test")),
            provenance=provenance(config, results.cards, datetime.now(UTC).date().isoformat()),
            tables=section_tables(config, results, pairs, groups, native, agreement, verdicts),
            figures=figures,
            references=study_references(config),
            files=linked_files(config),
            viewers=views.viewers,
            viewer_note=views.viewer_note,
        ),
        layout.report,
    )
    inputs = {name: card.weights_sha256 for name, card in results.cards.items()}
    with group_run(config.tracking, config.study.name, layout.pending_records) as run:
        _log(run, config, results, sentences, figures, views)
        run.finish()
        write_manifest(
            layout.manifest("report"),
            step="report",
            outputs={**{name: layout.table(name) for name in tables}, **filed, "report": layout.report},
            inputs=inputs,
            config=dump_sections(config.evaluate),
        )
    # After this run, whose end may be queued by a process that was killed: it is continued, not ended.
    sync(config.tracking, layout.pending_records)
    warn_unsent(layout.pending_records)


def _write_figures(layout: Layout, median: ReportFigure, figures: Sequence[ReportFigure]) -> dict[str, Path]:
    """Write `figures` as PNG and return their paths: those of FILED, with `median` as the first, and the others."""
    from dualflow.report.style import write_figure

    drawn = {FILED[0]: median} | {figure.name: figure for figure in figures if figure is not median}
    paths = {
        name: layout.report_figure(name) if name in FILED else layout.other_figures / f"{name}.png" for name in drawn
    }
    layout.other_figures.mkdir(parents=True, exist_ok=True)
    for path in set(layout.other_figures.glob("*.png")) - set(paths.values()):
        path.unlink()  # of an earlier configuration
    for name, figure in drawn.items():
        write_figure(paths[name], figure.figure)
    return {f"{name}_figure": path for name, path in paths.items()}


def _mean_target(test: PairDataset) -> float:
    """Mean of the real targets in the brain masks, where they are shown, over people, each person's visits first."""
    targets = [(item["target"].numpy(), item["mask"].numpy()) for item in test.items]
    means = pd.Series([float(target[scored_voxels(target, mask)].mean()) for target, mask in targets])
    return float(means.groupby(test.subjects).mean().mean())


def _log(
    run: Run,
    config: Config,
    results: StudyResults,
    sentences: list[str],
    figures: dict[str, list[ReportFigure]],
    views: SubjectViews,
) -> None:
    """Log pages, figures and tables of the whole study; the scores of each model are on its own run.

    Tables of single people stay with the study; the quality page has their side values.
    """
    from dualflow.report.style import to_page_png, to_png

    run.text(yaml.safe_dump(public_values(config), sort_keys=False), "config.yaml")
    run.members([run_label(config, name, seed) for name, seed in config.trainings])
    on_page = {figures["comparison"][0].name: "Scores of all models", views.median.name: views.viewer_note}
    for drawn in (drawn for entries in figures.values() for drawn in entries):
        # The report has rendered all figures in full size.
        render = to_page_png if drawn.name in on_page else to_png
        run.picture(render(drawn.figure), f"figures/{drawn.name}.png")
    for page in (config.layout.report, config.layout.qc):
        run.file(page)
    folder = config.layout.tables.relative_to(config.layout.root).as_posix()  # where the report links them
    for name, table in results.tables.items():
        run.text(table_text(table), f"{folder}/{name}.tsv")
    pictures = [picture_link(f"figures/{name}.png", text) for name, text in on_page.items()]
    run.describe(run_description([f"**{study_title(config)}**", *pictures, *sentences], config.layout.report.name))
