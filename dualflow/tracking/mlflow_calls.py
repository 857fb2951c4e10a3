"""What is asked of an MLflow client: each call by name with JSON values, so that it can wait in a file.

A call that is made twice, because it was not known to have arrived, leaves what one leaves.
"""

from __future__ import annotations

import warnings
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
"""Codes of MLflow by which a server that is there says that it will never have a call."""


def is_refusal(error: Exception) -> bool:
    """Whether the call itself is at fault, and not the way to the server."""
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", None) in REFUSALS


def _log_data(client: Any, run_id: str, frame: str, name: str, context: str) -> None:
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    # Without a source, MLflow would take the account name and the path of the script.
    source = CodeDatasetSource(tags={"mlflow.source.name": "dualflow"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on integer columns of a table that is only recorded
        dataset = mlflow.data.from_pandas(_frame(frame), source=source, name=name)
    tag = InputTag("mlflow.data.context", context)
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])


def _log_image(client: Any, run_id: str, given: Mapping[str, Any]) -> None:
    import numpy as np

    # MLflow gives every picture a name of its own.
    there = f"{given['key'].replace('/', '#')}%step%{given['step']}%"
    if any(there in file.path for file in client.list_artifacts(run_id, "images")):
        return
    pixels = np.frombuffer(b64decode(given["bytes"]), np.uint8).reshape(given["shape"])
    when = {"step": given["step"], "timestamp": given["milliseconds"]}
    client.log_image(run_id, pixels, key=given["key"], synchronous=True, **when)


def _log_metrics(client: Any, run_id: str, values: Mapping[str, float], step: int, milliseconds: int) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(key, value, milliseconds, step) for key, value in values.items()])


def _log_parameters(client: Any, run_id: str, values: Mapping[str, str]) -> None:
    # A value cannot be changed; a training that is gone on with, such as with other processes, keeps its first ones.
    known = client.get_run(run_id).data.params
    for key, value in values.items():
        if key not in known:
            client.log_param(run_id, key, value)


def _log_table(client: Any, run_id: str, frame: str, name: str) -> None:
    # Logged again, its rows would be appended.
    if name not in {file.path for file in client.list_artifacts(run_id)}:
        client.log_table(run_id, _frame(frame), name)


def _frame(text: str) -> pd.DataFrame:
    from io import StringIO

    import pandas as pd

    return pd.read_json(StringIO(text), orient="split", dtype=False)


CALLS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "parameters": _log_parameters,
    "metrics": lambda client, run_id, given: _log_metrics(client, run_id, **given),
    "image": _log_image,
    "table": lambda client, run_id, given: _log_table(client, run_id, **given),
    "data": lambda client, run_id, given: _log_data(client, run_id, **given),
    "file": lambda client, run_id, given: client.log_artifact(run_id, given["path"], given["folder"]),
    "text": lambda client, run_id, given: client.log_text(run_id, given["text"], given["name"]),
    "end": lambda client, run_id, given: client.set_terminated(run_id, given["status"]),
}
"""By name: call(client, run_id, arguments)."""
