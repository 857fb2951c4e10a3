"""The report: one HTML file that holds everything, opens from disk, and asks no other host for anything."""

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

# Sections that hold tables and figures, in reading order, each with the sentence that leads into it.
SECTIONS: dict[str, tuple[str, str]] = {
    "subjects": (
        "Subjects",
        "Real and synthetic images of test subjects, in neurological orientation: the subject's left is on the left.",
    ),
    "comparison": (
        "Comparison",
        "All models on the same held-out subjects, inside the brain mask. Brackets and bars are 95 % bootstrap "
        "intervals over subjects; bold is the best mean of a column.",
    ),
    "uncertainty": (
        "Uncertainty",
        "Whether the stated intervals hold, for single voxels and for the mean of whole regions.",
    ),
    "learnt": (
        "What the flow learnt",
        "Its density of real images inside the brain mask, whether that rests on the source image, the images it "
        "gives, and whether it is safe to compute with.",
    ),
    "training": ("Training", "How each model learnt."),
}

# Figures are rendered finer than shown, for sharp screens.
PIXELS_PER_INCH = 100


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: heading of the page.
        facts: short facts of the study, name -> value.
        findings: what the numbers say, in sentences.
        tables: section (a key of SECTIONS) -> its tables.
        figures: section -> its figures, as (caption, figure).
        quarantine: scans set aside: columns scan, step, reason; empty if there are none.
        method: paragraphs on how the numbers came about.
        limits: what the numbers do not mean, in sentences.
        versions: what made this page, name -> version, hash or seed.
    """

    title: str
    facts: Mapping[str, object]
    findings: Sequence[str]
    quarantine: pd.DataFrame
    method: Sequence[str]
    limits: Sequence[str]
    versions: Mapping[str, object]
    tables: Mapping[str, Sequence[Table]] = field(default_factory=dict)
    figures: Mapping[str, Sequence[tuple[str, Figure]]] = field(default_factory=dict)


def render(report: ReportData, path: Path) -> None:
    """Write `report` to `path` atomically; equal reports give equal bytes.

    Raises:
        ConfigError: tables or figures are given for a section that does not exist.
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
    """A page of this package by its file name: what it is given is escaped, and a value it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("dualflow.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tie"] = _tie
    return environment.get_template(name)


def data_uri(data: bytes, kind: str) -> str:
    """A file of MIME type `kind` as an address that holds the file itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _tie(text: object) -> str:
    """Keep a per cent sign and a p-value on one line."""
    return re.sub(r" (?=%)|(?<=\bp) (?== )|(?<=\bp =) ", "\N{NO-BREAK SPACE}", str(text))
