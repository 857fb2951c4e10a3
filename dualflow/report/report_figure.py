"""A figure of the report with its words, and its rendering for wide and narrow screens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dualflow.report.data_uri import data_uri

if TYPE_CHECKING:  # the quality control page needs no matplotlib
    from matplotlib.figure import Figure

# Figures are rendered at a higher resolution than shown, for high-density screens.
PIXELS_PER_INCH = 100
FILED = ("subject", "comparison", "agreement", "regions", "calibration")
"""Names of the figures that every study has, for `snakemake --report`; `subject` is the median test person."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        name: unique name on the page, for links and files.
        figure: the figure.
        caption: what is shown, and how to read it.
        alt: what is seen, with its numbers, for readers who do not see it.
        narrow: the same content in the width of a phone; None if `figure` is legible there.
    """

    name: str
    figure: Figure
    caption: str
    alt: str
    narrow: Figure | None = None

    def embedded(self) -> EmbeddedFigure:
        """The figure as data URIs."""
        wide, width, height = _embed(self.figure)
        narrow = None if self.narrow is None else _embed(self.narrow)[0]
        return EmbeddedFigure(self.name, self.caption, self.alt, wide, width, height, narrow)


class EmbeddedFigure(NamedTuple):
    """A rendered figure: data URIs, and the size in pixels at which the wide one is shown."""

    name: str
    caption: str
    alt: str
    address: str
    width: int
    height: int
    narrow: str | None


def seed_note(seeds: Sequence[int]) -> str:
    """End of the caption of a figure that shows the trainings with the first of several seeds; empty with one seed."""
    return f" Of the trainings with seed {seeds[0]} alone; tables average all seeds." if len(seeds) > 1 else ""


def _embed(figure: Figure) -> tuple[str, int, int]:
    from dualflow.report.style import to_png

    width, height = (round(PIXELS_PER_INCH * float(inches)) for inches in figure.get_size_inches())
    return data_uri(to_png(figure), "image/png"), width, height
