"""The view `Models` of an experiment's page: every model with its test scores, as a table and as charts.

The link opens the table: MLflow writes two decimals on bars, by which good models do not differ.

MLflow keeps a saved view as a tag of the experiment. Without one, its page shows the parent runs alone, which have no
scores.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

VIEW = "models"
"""Key of the view in links."""
TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of the experiment that holds the view."""
CURRENT = "current"
"""Tag of finished runs: `true` on the last one of its name in a group, `false` on those that it replaces.

It is `false` too on those of models that the group no longer has.
"""
GROUP_TAG = "group"
"""Tag of nested runs: the name of the run above them, such as `comparison`."""
RUNS_SHOWN = 250
"""Most runs in a chart; a comparison of all models over three folds has 72 with one seed."""
SMOOTHING = 85
"""Exponential smoothing of the curves of single steps, of 100: a point averages about the last six."""
SINGLE_STEPS = "train/"
"""Group of the metrics of single steps; those of `validation/` are means over people."""
NAME_COLUMN = "attributes.`Run Name`"
"""Column of the table with the names of the runs."""
GROUP_COLUMN = f"tags.`{GROUP_TAG}`"
"""Column of the table with the groups: a study and its comparison have runs of the same names."""
GROUP_WIDTH_PX = 180
"""Width of that column: `comparison over 3 folds`."""
CHARACTER_PX, HEADER_PX = 8, 30
"""Width of a character in the header of a column, and that of the rest of the header."""


def models_view(scores: Sequence[str], curves: Sequence[str], facts: Sequence[str] = ()) -> str:
    """Return the value of TAG.

    Args:
        scores: tracked names of the test scores, the one to sort by first; less of that one is better.
        curves: tracked names of metrics over the steps of a training.
        facts: tracked names of further columns of the table, which have no chart.
    """
    columns = [f"metrics.`{name}`" for name in [*scores, *facts]]
    sections = {"test": "Test scores", "training": "Training"}
    bars = [_chart("BAR", "test", name) for name in scores]
    lines = [{**_chart("LINE", "training", name), **_line(name)} for name in curves]
    state = {
        "searchFilter": f"tags.{CURRENT} = 'true' and tags.seed != ''",
        "orderByKey": f"metrics.`{scores[0]}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [GROUP_COLUMN, *columns],
        # Otherwise columns are sorted by name and so narrow that names and digits are cut.
        "columnOrder": [NAME_COLUMN, GROUP_COLUMN, *columns],
        "columnWidths": {
            GROUP_COLUMN: GROUP_WIDTH_PX,
            **{
                column: CHARACTER_PX * len(name) + HEADER_PX
                for column, name in zip(columns, [*scores, *facts], strict=True)
            },
        },
        "compareRunCharts": [*bars, *lines],
        "compareRunSections": [
            {"uuid": key, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for key, name in sections.items()
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "runsHiddenMode": "SHOW_ALL",
    }
    # A tag holds few characters, so MLflow's pages read compressed ones too.
    compressed = b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return json.dumps({"name": "Models", "createdAt": 0, "state": f"deflate;{compressed}"})


def view_link(address: str, experiment_id: str) -> str:
    """Return the link to the table of the view on the pages at `address`."""
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}&compareRunsMode=TABLE"
    return f"{address}/#/experiments/{experiment_id}/runs?{query}"


def _chart(kind: str, section: str, metric: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": metric,
        "metricKey": metric,
        "metricSectionId": section,
        "runsCountToCompare": RUNS_SHOWN,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str) -> dict[str, Any]:
    return {
        "selectedMetricKeys": [metric],
        "scaleType": "linear",
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "lineSmoothness": SMOOTHING if metric.startswith(SINGLE_STEPS) else 0,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
    }
