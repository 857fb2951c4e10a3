"""The folder of a trained model that a command line names: a path, or a model registered in MLflow."""

from __future__ import annotations

from pathlib import Path

from dualflow.models.bundle import verify_bundle
from dualflow.tracking.model_download import download_model, is_model_uri


def locate_model(model: str, tracking_uri: str) -> Path:
    """Return the folder of a trained model.

    Args:
        model: a folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: MLflow tracking URI of registered models.

    Raises:
        ConfigError: a URI cannot be used.
        CheckpointError: a registered model does not exist, does not verify or is unreachable.
    """
    return download_model(model, tracking_uri, verify_bundle) if is_model_uri(model) else Path(model).expanduser()
