"""From the name of a trained model to its folder."""

from __future__ import annotations

from pathlib import Path

from dualflow.errors import CheckpointError


def resolve_model(model: str) -> Path:
    """The folder with the weights and the card of a model.

    Args:
        model: a folder of a study's results (`results/NAME/models/MODEL/seed-S`), or one with the same two files.

    Raises:
        CheckpointError: the model is named by a URI, which is not supported.
    """
    if "://" in model or model.startswith(("models:", "runs:")):
        raise CheckpointError(f"model '{model}' is a URI, expected the folder of a trained model; download it first")
    return Path(model).expanduser()
