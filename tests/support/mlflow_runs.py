"""Read back MLflow runs, and log one record of each kind."""

from __future__ import annotations

import numpy as np
import pandas as pd
from mlflow import MlflowClient

EXPERIMENT = "study"
UNREACHABLE = "http://127.0.0.1:9"


def unreachable(config):
    """Return the configuration with a server that does not answer."""
    return config.model_copy(update={"uri": UNREACHABLE})


def read_runs(config):
    """Return all runs of the experiment by name."""
    client = MlflowClient(config.uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return {run.info.run_name: run for run in runs}


def read_records(config, name):
    """Return what a run contains: status, parameters, metric history, numbers of images, tables, dataset digests."""
    run, client = read_runs(config)[name], MlflowClient(config.uri)
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    images = len(client.list_artifacts(run.info.run_id, "images"))
    tables = [file.path for file in client.list_artifacts(run.info.run_id) if file.path.endswith(".json")]
    inputs = [entry.dataset.digest for entry in run.inputs.dataset_inputs]
    return run.info.status, run.data.params, history, images, tables, inputs


def log_all(run):
    """Log a record of each kind that can be queued."""
    run.parameters({"train": {"steps": 4}})
    run.tags({"evaluated_at": "abc"})
    for step in range(3):
        run.metrics({"loss": 1.0 / (step + 1)}, step)
        run.image(np.full((4, 6), 0.5), "validation/axial", step)
    run.data(pd.DataFrame({"scan": ["sub-01"], "split": ["train"]}), "pairs", "training")
    run.table(pd.DataFrame({"a": [1, 2]}), "table.json")
    run.text("hello", "notes/hello.txt")
    run.view("view")
