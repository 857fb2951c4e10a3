"""The worked examples of docs/extend.md run as they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualflow.baselines.registry import BASELINES
from dualflow.evaluation.metrics import METRICS
from dualflow.flows.coupling import COUPLING_TRANSFORMS
from dualflow.modalities import MODALITIES

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("extend*.md"))
SECTIONS = {
    f"{page.stem}: {section.splitlines()[0]}": "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    for page in PAGES
    for section in page.read_text().split("\n## ")[1:]
}


@pytest.fixture
def tables() -> Iterator[None]:
    """Tables that examples add rows to; the rows are removed afterwards."""
    changed: list[dict] = [MODALITIES, METRICS, BASELINES, COUPLING_TRANSFORMS]
    kept = [dict(table) for table in changed]
    yield
    for table, rows in zip(changed, kept, strict=True):
        table.clear()
        table.update(rows)


def test_there_are_examples():
    """Modality, metric, baseline and mechanism each have code."""
    assert len([code for code in SECTIONS.values() if code]) >= 4


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("name", SECTIONS)
def test_example_runs(name):
    """The code of a section runs from top to bottom, and its assertions hold."""
    exec(compile(SECTIONS[name], name, "exec"), {"__name__": "example"})
