"""Contact sheet: a page with one card per scan, as the quality control and the conversion have.

Cards are written one by one, so memory does not grow with the number of scans.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from dualflow.commit import committing
from dualflow.report.data_uri import data_uri, script_digest
from dualflow.report.study_page import template


@dataclass(frozen=True)
class Figure:
    """One number or text of a card.

    Attributes:
        label: its name.
        text: the value with its unit.
        note: what to compare it with, such as a threshold.
        beyond: whether the value lies beyond that.
    """

    label: str
    text: str
    note: str = ""
    beyond: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture of a card.

    Attributes:
        address: data URI, or address relative to the page.
        width: width in pixels.
        height: height in pixels.
    """

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """One scan of a contact sheet.

    Attributes:
        scan: key of the scan.
        group: group that the page can be filtered by.
        tone: CSS class of the card: `flagged`, `failed` or ''.
        badge: verdict beside the scan's key; '' for none.
        reasons: reasons for review.
        figures: numbers and texts below the picture.
        values: known numbers by column, for sorting.
        picture: the picture; None for a card of one line, or if `missing` says why there is none.
        missing: text in place of a picture that is missing.
        alt: description of the picture.
        link: address of the scan's files, relative to the page; '' for none.
        decides: whether the reader decides on the scan.
    """

    scan: str
    group: str
    tone: str = ""
    badge: str = ""
    reasons: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    picture: Picture | None = None
    missing: str = ""
    alt: str = ""
    link: str = ""
    decides: bool = False

    @property
    def classes(self) -> str:
        """CSS classes of the card."""
        line = "" if self.picture or self.missing else "line"
        return " ".join(name for name in ("card", self.tone, line) if name)


def write_sheet(
    path: Path, name: str, cards: Iterable[Card], *, scripts: Sequence[str] = ("cards.js",), **values: Any
) -> None:
    """Write the page of the template `name` to `path` atomically; equal inputs give identical bytes.

    Args:
        path: HTML file.
        name: template that extends `cards.html`.
        cards: the cards; each is requested when it is written.
        scripts: names of the scripts of the page, in this order.
        values: further values of the template.
    """
    script = "".join(files("dualflow.report").joinpath(script).read_text("utf-8") for script in scripts)
    page = template(name).stream(cards=cards, script=script, digest=script_digest(script), **values)
    with committing(path) as temp:
        page.dump(str(temp), encoding="utf-8")


def load_picture(file: Path, page: Path | None = None) -> Picture | None:
    """The picture of a card; None if it cannot be read.

    Args:
        file: picture file.
        page: page that refers to the file by a relative address; None embeds the picture.
    """
    try:
        with Image.open(file) as image:
            kind, (width, height) = str(image.get_format_mimetype()), image.size
        return Picture(data_uri(file.read_bytes(), kind) if page is None else address(file, page), width, height)
    except OSError:
        return None


def address(file: Path, page: Path) -> str:
    """Address of a file relative to the folder of a page."""
    return quote(Path(os.path.relpath(file, page.parent)).as_posix())


def split_reasons(cell: str) -> list[str]:
    """Reasons of a table's cell, which are joined by '; '."""
    return [reason for reason in cell.split("; ") if reason]
