"""What an imputation is made with, model and options, and whether the table of a study is that of its configuration."""

from __future__ import annotations

from typing import Any

from dualflow.config import Config, ImputeConfig, dump_sections
from dualflow.manifest import read_manifest
from dualflow.models.model_files import WEIGHTS

STEP = "impute"


def imputation_options(options: ImputeConfig) -> dict[str, Any]:
    """The options that a table of draws depends on."""
    return dump_sections(options, without=("analyses", "meta_regions"))


def imputing_weights(config: Config, name: str) -> str:
    """Path of the weights of the model that imputes, relative to the study's results."""
    return str((config.layout.model(name, config.train.seeds[0]) / WEIGHTS).relative_to(config.layout.root))


def forget_other_imputation(config: Config) -> bool:
    """Remove the manifest of a table that was drawn by another model or with other options than the configuration's.

    `dualflow impute --set impute.draws=100` makes one. Snakemake does not notice, and the report's analyses would be
    those of that table.

    Returns:
        Whether there was one, so that the workflow draws again.
    """
    path = config.layout.manifest(STEP)
    manifest = read_manifest(path, verify=False) if config.impute else None
    if manifest is None or config.impute is None:
        return False
    weights = imputing_weights(config, config.imputing_model)
    if manifest["config"] == imputation_options(config.impute) and manifest["facts"].get("weights") == weights:
        return False
    path.unlink()
    return True
