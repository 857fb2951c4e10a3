"""The study report as one self-contained HTML file, without external resources."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from dualflow.commit import commit_text
from dualflow.errors import ConfigError
from dualflow.report.tables import Table

if TYPE_CHECKING:  # the quality control page needs no matplotlib
    from matplotlib.figure import Figure

# Sections with tables and figures in reading order: key -> (heading, lead).
SECTIONS: dict[str, tuple[str, str]] = {
    "subjects": (
        "Subjects",
        "Real and synthetic images of test subjects in neurological orientation: left is left.",
    ),
    "comparison": (
        "Comparison",
        "All models on the same held-out subjects, inside the brain mask. Brackets and bars are 95 % bootstrap "
        "intervals over subjects. Bold marks the best mean of a column.",
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

# Figures are rendered at a higher resolution than shown, for high-density screens.
PIXELS_PER_INCH = 100


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
        figures: section -> figures, as (caption, figure).
    """

    title: str
    facts: Mapping[str, object]
    summary: Sequence[str]
    excluded: pd.DataFrame
    method: Sequence[str]
    limitations: Sequence[str]
    provenance: Mapping[str, object]
    tables: Mapping[str, Sequence[Table]] = field(default_factory=dict)
    figures: Mapping[str, Sequence[tuple[str, Figure]]] = field(default_factory=dict)


def render(report: ReportData, path: Path) -> None:
    """Write `report` to `path` atomically; equal reports give identical bytes.

    Raises:
        ConfigError: a table or figure names an unknown section.
    """
    from dualflow.report.style import to_png

    unknown = sorted({*report.tables, *report.figures} - set(SECTIONS))
    if unknown:
        raise ConfigError(f"report section '{unknown[0]}' does not exist; choose from: {', '.join(SECTIONS)}")
    sections = [
        {
            "key": key,
            "name": name,
            "lead": lead,
            "tables": list(report.tables.get(key, ())),
            "figures": [
                (caption, data_uri(to_png(figure), "image/png"), round(PIXELS_PER_INCH * figure.get_figwidth()))
                for caption, figure in report.figures.get(key, ())
            ],
        }
        for key, (name, lead) in SECTIONS.items()
    ]
    commit_text(path, template("report.html").render(title=report.title, report=report, sections=sections))


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


def data_uri(data: bytes, kind: str) -> str:
    """Content of a file of MIME type `kind` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _unbroken(text: object) -> str:
    """Replace the spaces before per cent signs and in p-values by no-break spaces."""
    return re.sub(r" (?=%)|(?<=\bp) (?== )|(?<=\bp =) ", "\N{NO-BREAK SPACE}", str(text))
