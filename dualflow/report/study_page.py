"""The study report as one self-contained HTML file, without external resources."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from dualflow.commit import commit_text
from dualflow.errors import ConfigError
from dualflow.report.report_figure import ReportFigure
from dualflow.report.tables import Table
from dualflow.report.viewer import script_sources

# Sections with tables and figures in reading order: key -> (heading, lead).
SECTIONS: dict[str, tuple[str, str]] = {
    "cohort": ("Cohort", "Who the models learned from, and who they were tested on."),
    "subjects": (
        "Test subjects",
        "Real and synthetic images of held-out subjects, whom no model was trained on. Left is left.",
    ),
    "comparison": (
        "Comparison",
        "All models on the same held-out subjects, inside the brain mask. Bold: the best mean of a column, and those "
        "that print alike. A score that ranks no models, or has no interval, has none in bold.",
    ),
    "regions": (
        "Regions",
        "Regional means of the real and the synthetic images: agreement, the regions with the largest errors, and "
        "whether the synthetic images keep known effects of side information.",
    ),
    "groups": (
        "Groups",
        "Errors of every model by group, and the subjects with the largest errors.",
    ),
    "analyses": (
        "Group analyses",
        "Effects on regional uptake in all subjects, with the regions of those without a measured target imputed.",
    ),
    "uncertainty": (
        "Uncertainty",
        "Calibration of the predictive distributions, for voxels and for region means.",
    ),
    "likelihood": (
        "Likelihood",
        "Density of the real images under the flows, dependence of that density on the source image, accuracy of "
        "point estimates and samples, and numerical stability.",
    ),
    "training": ("Training", "Cost and course of each training."),
}


@dataclass(frozen=True)
class ReportData:
    """Content of a report.

    Attributes:
        title: heading of the page.
        facts: facts of the study, name -> value.
        summary: results in sentences.
        excluded: excluded scans with columns scan, step, reason; may be empty.
        method: paragraphs on the methods.
        limitations: limits of interpretation, in sentences.
        provenance: software and inputs, name -> version, digest or seed.
        tables: section (a key of SECTIONS) -> tables.
        figures: section -> figures.
        references: publications behind the methods.
        files: address relative to the page -> what the file holds.
        viewers: heading -> complete HTML page of an interactive view, without external resources.
        viewer_note: who the views show.
    """

    title: str
    facts: Mapping[str, object]
    summary: Sequence[str]
    excluded: pd.DataFrame
    method: Sequence[str]
    limitations: Sequence[str]
    provenance: Mapping[str, object]
    tables: Mapping[str, Sequence[Table]] = field(default_factory=dict)
    figures: Mapping[str, Sequence[ReportFigure]] = field(default_factory=dict)
    references: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    viewers: Mapping[str, str] = field(default_factory=dict)
    viewer_note: str = ""


def render(report: ReportData, path: Path) -> None:
    """Write `report` to `path` atomically; equal reports give identical bytes.

    Raises:
        ConfigError: a table or figure names an unknown section.
    """
    unknown = sorted({*report.tables, *report.figures} - set(SECTIONS))
    if unknown:
        raise ConfigError(f"report section '{unknown[0]}' does not exist; choose from: {', '.join(SECTIONS)}")
    sections = [
        {
            "key": key,
            "name": name,
            "lead": lead,
            "tables": list(report.tables.get(key, ())),
            "figures": [figure.embedded() for figure in report.figures.get(key, ())],
        }
        for key, (name, lead) in SECTIONS.items()
        if key != "analyses" or report.tables.get(key)
    ]
    scripts = script_sources(report.viewers.values())
    page = template("report.html").render(title=report.title, report=report, sections=sections, scripts=scripts)
    commit_text(path, page)


def template(name: str) -> Template:
    """A template of this package by file name; values are escaped, and missing values are errors."""
    environment = Environment(
        loader=PackageLoader("dualflow.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template(name)


def _unbroken(text: object) -> str:
    """Replace the spaces before per cent signs and in p-values by no-break spaces."""
    return re.sub(r" (?=%)|(?<=\bp) (?== )|(?<=\bp =) ", "\N{NO-BREAK SPACE}", str(text))
