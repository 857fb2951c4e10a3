"""The steps of a study's workflow, by the names of their manifests."""

from __future__ import annotations

from dualflow.config import Config
from dualflow.config.config import SEEDED


def closed_form_baselines(config: Config) -> list[str]:
    """Names of the baselines that are fitted in closed form, without gradient steps."""
    return [name for name in config.baselines.models if name not in SEEDED]


def step_names(config: Config) -> list[str]:
    """Names of the manifests that a finished study has, in the order of the workflow."""
    shards = range(config.preprocess.shards)
    cohort = [*(f"cohort/shard-{shard}" for shard in shards), "cohort"] if config.embedded else []
    models = [f"{name}_seed-{seed}" for name, seed in config.trainings]
    return [
        *cohort,
        "index",
        *(f"preprocess/shard-{shard}" for shard in shards),
        "preprocess",
        "qc",
        *(f"train/{model}" for model in models),
        "convert",
        *(f"evaluate/{model}" for model in models),
        "evaluate/ceilings",
        "report",
        "check",
    ]
