"""The view of an experiment's models holds what MLflow's pages read."""

import json
import zlib
from base64 import b64decode

from dualflow.tracking.saved_view import TAG, VIEW, models_view, view_link

LONGEST = 5000
"""Characters of an experiment's tag that MLflow's databases hold."""


def test_the_view_reads_back():
    """Name and state are those of a view that was saved on the page; each chart is in a section that exists."""
    value = models_view(["test/crps_SUVR", "test/mae_SUVR"], ["train/loss"], ["train/best_step"])
    view = json.loads(value)
    assert view["name"] == "Models"
    assert isinstance(view["createdAt"], int)
    state = json.loads(zlib.decompress(b64decode(view["state"].removeprefix("deflate;"))))
    # Group analyses are runs of all models, and have no seed.
    assert "tags.seed != ''" in state["searchFilter"]
    assert state["selectedColumns"] == [
        "tags.`group`", "metrics.`test/crps_SUVR`", "metrics.`test/mae_SUVR`", "metrics.`train/best_step`",
    ]  # fmt: skip
    assert [(chart["type"], chart["metricKey"]) for chart in state["compareRunCharts"]] == [
        ("BAR", "test/crps_SUVR"), ("BAR", "test/mae_SUVR"), ("LINE", "train/loss"),
    ]  # fmt: skip
    assert state["columnOrder"] == ["attributes.`Run Name`", *state["selectedColumns"]]
    assert list(state["columnWidths"]) == state["selectedColumns"]
    assert all(width > 7.5 * len("test/mae_SUVR") for width in state["columnWidths"].values())
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections


def test_curves_of_single_steps_are_smoothed():
    """They are noisy; a validation is a mean over people and stays as it is."""
    view = json.loads(models_view(["test/mae_SUVR"], ["validation/nll", "train/loss"]))
    state = json.loads(zlib.decompress(b64decode(view["state"].removeprefix("deflate;"))))
    lines = {chart["metricKey"]: chart for chart in state["compareRunCharts"] if chart["type"] == "LINE"}
    assert lines["validation/nll"]["lineSmoothness"] == 0
    assert 50 < lines["train/loss"]["lineSmoothness"] <= 100
    assert not any(chart["useGlobalLineSmoothing"] for chart in lines.values())


def test_the_view_fits_into_a_tag():
    """Many long names do too."""
    names = [f"test/a_rather_long_name_of_a_score_{number}_bits_per_voxel" for number in range(20)]
    assert len(models_view(names, names)) < LONGEST


def test_the_link_names_the_view():
    """MLflow finds a view by the end of its tag; the link opens its table."""
    link = view_link("http://127.0.0.1:5000", "3")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/3/runs?")
    assert f"viewStateShareKey={VIEW}" in link
    assert link.endswith("compareRunsMode=TABLE")
    assert TAG.endswith(f".{VIEW}")
