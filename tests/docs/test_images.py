"""Pictures of the documentation are those that its scripts draw, and light."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "scripts"))
make_diagrams = pytest.importorskip("make_diagrams")


@pytest.mark.parametrize("name", make_diagrams.DRAWINGS)
def test_diagram_is_up_to_date(name):
    """The committed SVG is what the script draws."""
    assert (DOCS / "images" / f"{name}.svg").read_text() == make_diagrams.DRAWINGS[name]().svg()


def test_images_are_small():
    """No picture is larger than 400 kB."""
    assert all(image.stat().st_size < 400_000 for image in (DOCS / "images").iterdir())
