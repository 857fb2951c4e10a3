"""The steps of a study's workflow, by the names of their manifests."""

from __future__ import annotations

from collections.abc import Sequence

from dualflow.config import Config
from dualflow.config.config import SEEDED


def closed_form_baselines(config: Config) -> list[str]:
    """Names of the baselines that are fitted in closed form, without gradient steps."""
    return [name for name in config.baselines.models if name not in SEEDED]


def step_names(config: Config) -> list[str]:
    """Steps of a finished study, in the order of the workflow."""
    models = [f"{name}_seed-{seed}" for name, seed in config.trainings]
    return [
        *_preparation(config),
        "qc",
        *(f"train/{model}" for model in models),
        "convert",
        *(f"evaluate/{model}" for model in models),
        "evaluate/ceilings",
        "report",
        "check",
    ]


def scoring_steps(config: Config, flows: Sequence[str]) -> list[str]:
    """Steps that train and score `flows` with every seed, without conversion and report."""
    models = [f"{name}_seed-{seed}" for name in flows for seed in config.train.seeds]
    return [
        *_preparation(config),
        *(f"train/{model}" for model in models),
        *(f"evaluate/{model}" for model in models),
    ]


def _preparation(config: Config) -> list[str]:
    """Steps from nothing to preprocessed pairs."""
    shards = range(config.preprocess.shards)
    cohort = [*(f"cohort/shard-{shard}" for shard in shards), "cohort"] if config.embedded else []
    return [*cohort, "index", *(f"preprocess/shard-{shard}" for shard in shards), "preprocess"]
