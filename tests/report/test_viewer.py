"""Interactive views."""

import re

import numpy as np
import pytest

import dualflow.report.viewer as viewer
from dualflow.report.subject_figure import Column
from dualflow.report.viewer import interactive_views, script_sources


@pytest.fixture(scope="module")
def arguments():
    """A brain with an image on the grid of a source, and the grid's affine."""
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 14, 12), bool)
    mask[2:-2, 2:-2, 2:-2] = True
    source = rng.random(mask.shape).astype(np.float32)
    image = Column("Synthetic", source + 0.5, "magma", (0.0, 2.0), "SUVR")
    return [image], source, mask, np.diag([8.0, 8.0, 8.0, 1.0])


def test_views_need_no_network_and_their_scripts_are_listed(arguments):
    """A page has no address of a host and no reference to a file; the policy lists every script once."""
    pages = interactive_views(*arguments)
    text = re.sub(r"base64,[^\"']+", "", pages["Synthetic"])
    assert list(pages) == ["Synthetic"]
    assert "Synthetic (SUVR)" in text
    assert not re.search(r"https?://", text)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"'](?!data:)", text)
    sources = script_sources(pages.values())
    assert len(sources) == len(set(sources)) == text.count("</script>") > 0
    assert interactive_views(*arguments) == pages


def test_large_views_are_drawn_on_a_coarser_grid(arguments, monkeypatch):
    """Views above the limit become smaller until they keep it."""
    size = len(interactive_views(*arguments)["Synthetic"])
    monkeypatch.setattr(viewer, "MAX_BYTES", size - 2000)
    assert len(interactive_views(*arguments)["Synthetic"]) < size - 2000
