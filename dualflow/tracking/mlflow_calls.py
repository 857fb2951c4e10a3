"""MLflow calls by name, with JSON arguments, so that a record can be stored in a file and sent later.

Calls are idempotent: repeating one whose delivery was uncertain has no further effect.
"""

from __future__ import annotations

import re
import warnings
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualflow.digests import sha256
from dualflow.errors import DataError
from dualflow.tracking.saved_view import CURRENT, TAG

if TYPE_CHECKING:
    import pandas as pd

PERMANENT_ERRORS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
"""MLflow error codes that mean a request is permanently rejected."""
PARENT = "mlflow.parentRunId"
"""Tag with the id of the run under which a run is nested."""
DESCRIPTION = "mlflow.note.content"
"""Tag with the Markdown that a run's page shows."""
RUN_ID = "{run_id}"
"""Placeholder for the id of the run in its description."""
MAX_PARAMETERS = 100
"""Largest number of parameters that MLflow accepts in one request."""


def is_permanent_error(error: Exception) -> bool:
    """Whether the request itself is at fault, so that repeating it cannot succeed."""
    return isinstance(error, FileNotFoundError | DataError) or getattr(error, "error_code", None) in PERMANENT_ERRORS


def _log_data(client: Any, run_id: str, frame: str, name: str, context: str, source: str = "dualflow") -> None:
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    # Without a source, MLflow records the account name and the path of the script.
    origin = CodeDatasetSource(tags={"mlflow.source.name": source})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about integer columns, which matters only for model inputs
        dataset = mlflow.data.from_pandas(_read_frame(frame), source=origin, name=name)
    tag = InputTag("mlflow.data.context", context)
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])


def _log_image(client: Any, run_id: str, arguments: Mapping[str, Any]) -> None:
    import numpy as np

    # MLflow adds a random part to the file name of an image, so a repeated call would add a second file. Separators
    # depend on its version: key#with#slashes%step%3%.. or key~with~slashes+step+3+..
    key = "[#~]".join(re.escape(part) for part in arguments["key"].split("/"))
    name = re.compile(rf"images/{key}[%+]step[%+]{arguments['step']}[%+]")
    if any(name.match(file.path) for file in client.list_artifacts(run_id, "images")):
        return
    pixels = np.frombuffer(b64decode(arguments["bytes"]), np.uint8).reshape(arguments["shape"])
    step, milliseconds = arguments["step"], arguments["milliseconds"]
    client.log_image(run_id, pixels, key=arguments["key"], step=step, timestamp=milliseconds, synchronous=True)


def _log_metrics(client: Any, run_id: str, values: Mapping[str, float], step: int, milliseconds: int) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(key, value, milliseconds, step) for key, value in values.items()])


def _log_scores(
    client: Any, run_id: str, values: Mapping[str, float], milliseconds: int, prefix: str | None = None
) -> None:
    from mlflow.entities import Metric

    logged = {metric.key: metric for metric in client.get_run(run_id).data._metric_objs}
    # MLflow deletes no metric, so scores that are no longer computed become NaN. Records of earlier versions have no
    # prefix, and leave other scores as they are.
    earlier = [] if prefix is None else [key for key in logged if key.startswith(prefix) and key not in values]
    stale = {key: nan for key in earlier if not isnan(logged[key].value)}
    # The latest value of a metric is that of its highest step, so a repeated evaluation with other values takes the
    # next step, and one with the same values leaves the run as it is.
    points = [
        Metric(key, value, milliseconds, logged[key].step + 1 if key in logged else 0)
        for key, value in [*values.items(), *stale.items()]
        if key not in logged or logged[key].value != value
    ]
    if points:
        client.log_batch(run_id, metrics=points)


def _describe(client: Any, run_id: str, markdown: str) -> None:
    client.set_tag(run_id, DESCRIPTION, markdown.replace(RUN_ID, run_id))


def _tag(client: Any, run_id: str, arguments: Mapping[str, str]) -> None:
    for key, value in arguments.items():
        client.set_tag(run_id, key, value)


def _view(client: Any, run_id: str, value: str) -> None:
    client.set_experiment_tag(client.get_run(run_id).info.experiment_id, TAG, value)


def _log_file(client: Any, run_id: str, path: str, folder: str | None, digest: str | None = None) -> None:
    # A later training writes the same file: a record that waited must not give an earlier run its weights. Records of
    # earlier versions have no digest.
    if digest is None or sha256(Path(path)) != digest:
        raise DataError(f"{path}: was written anew before it could be uploaded, and is left out of run {run_id}")
    client.log_artifact(run_id, path, folder)


def _end(client: Any, run_id: str, status: str, milliseconds: int | None = None) -> None:
    client.set_terminated(run_id, status, end_time=milliseconds)
    run = client.get_run(run_id)
    parent = run.data.tags.get(PARENT)
    if parent is None:
        return
    if status == "FINISHED":
        _mark_current(client, run, parent)
        _end_abandoned(client, run, parent)
    # The parent lasts from its first child's start to the last one's end.
    try:
        client.set_terminated(parent)
    except Exception as error:
        if not is_permanent_error(error):  # a parent that was deleted in MLflow
            raise


def _mark_current(client: Any, run: Any, parent: str) -> None:
    """Mark the run that finished last as the current one of its name in its group, and the others as replaced.

    That is not always `run`: records that waited for the server may arrive after those of a later run.
    """
    of_name = with_tags({"mlflow.runName": run.info.run_name, PARENT: parent, CURRENT: "true"})
    others = client.search_runs([run.info.experiment_id], of_name)
    runs = {one.info.run_id: one.info.end_time or 0 for one in [*others, run]}
    last = max(runs, key=lambda run_id: runs[run_id])  # of equal times the run that was found first stays current
    for run_id in runs:
        client.set_tag(run_id, CURRENT, "true" if run_id == last else "false")


def _select_members(client: Any, run_id: str, names: Sequence[str]) -> None:
    """Mark the last finished run of each name in the group of `run_id` as current, those of other names as replaced.

    Runs without a seed, such as analyses, are not of models and stay as they are.
    """
    nested = with_tags({PARENT: run_id}, "attributes.status = 'FINISHED'", "tags.seed != ''")
    experiment = client.get_run(run_id).info.experiment_id
    by_name: dict[str, list[Any]] = {}
    for run in client.search_runs([experiment], nested, order_by=["attributes.end_time DESC"]):
        by_name.setdefault(run.info.run_name, []).append(run)
    for name, runs in by_name.items():
        current = next((run for run in runs if run.data.tags.get(CURRENT) == "true"), runs[0])
        for run in runs:
            value = "true" if name in names and run is current else "false"
            if run.data.tags.get(CURRENT) != value:
                client.set_tag(run.info.run_id, CURRENT, value)


def _end_abandoned(client: Any, run: Any, parent: str) -> None:
    """End the runs of its name in its group that were open before `run` ended.

    A training that is killed leaves its run open for the process that resumes it. If its inputs change, none does.
    """
    # Records that waited for the server may arrive while a later run is at work.
    earlier = f"attributes.start_time < {run.info.end_time}"
    of_name = with_tags({"mlflow.runName": run.info.run_name, PARENT: parent}, "attributes.status = 'RUNNING'", earlier)
    for one in client.search_runs([run.info.experiment_id], of_name):
        client.set_terminated(one.info.run_id, "KILLED")


def with_tags(tags: Mapping[str, str], *conditions: str) -> str:
    """Return the filter of a search for runs with these tags that meet further `conditions`."""
    return " and ".join([*(f"tags.`{tag}` = '{value}'" for tag, value in tags.items()), *conditions])


def logged_points(client: Any, run_id: str) -> set[tuple[str, int]]:
    """Metric and step of the points that a run has; those of the machine's load are left out."""
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith("system/")]
    return {(name, point.step) for name in names for point in client.get_metric_history(run_id, name)}


def _log_parameters(client: Any, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    # MLflow parameters are immutable: a resumed training with other settings, such as more processes, keeps the first.
    logged = client.get_run(run_id).data.params
    parameters = [Param(key, value) for key, value in values.items() if key not in logged]
    for start in range(0, len(parameters), MAX_PARAMETERS):
        client.log_batch(run_id, params=parameters[start : start + MAX_PARAMETERS])


def _log_table(client: Any, run_id: str, frame: str, name: str) -> None:
    # MLflow appends to a table that exists, so a repeated call would duplicate its rows.
    if name not in {file.path for file in client.list_artifacts(run_id)}:
        client.log_table(run_id, _read_frame(frame), name)


def _read_frame(text: str) -> pd.DataFrame:
    from io import StringIO

    import pandas as pd

    return pd.read_json(StringIO(text), orient="split", dtype=False)


CALLS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "parameters": _log_parameters,
    "tags": _tag,
    "metrics": lambda client, run_id, arguments: _log_metrics(client, run_id, **arguments),
    "image": _log_image,
    "table": lambda client, run_id, arguments: _log_table(client, run_id, **arguments),
    "data": lambda client, run_id, arguments: _log_data(client, run_id, **arguments),
    "file": lambda client, run_id, arguments: _log_file(client, run_id, **arguments),
    "text": lambda client, run_id, arguments: client.log_text(run_id, arguments["text"], arguments["name"]),
    "scores": lambda client, run_id, arguments: _log_scores(client, run_id, **arguments),
    "description": lambda client, run_id, arguments: _describe(client, run_id, arguments["markdown"]),
    "view": lambda client, run_id, arguments: _view(client, run_id, arguments["value"]),
    "members": lambda client, run_id, arguments: _select_members(client, run_id, arguments["names"]),
    "end": lambda client, run_id, arguments: _end(client, run_id, arguments["status"], arguments.get("milliseconds")),
}
"""Calls by name, each a function of (client, run_id, arguments)."""
