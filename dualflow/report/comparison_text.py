"""A comparison's table as text: Markdown for a page, with columns that also line up on a terminal."""

from __future__ import annotations

import pandas as pd

from dualflow.config import Config
from dualflow.data.markdown import Column, table
from dualflow.evaluation.calibration import LEVELS
from dualflow.evaluation.metrics import METRICS
from dualflow.modalities import Modality, modality
from dualflow.training.budget import Plan

EXPLAINED = {
    "explained_level_": "latents explained by level, finest first",
    "explained_other_level_": "by another's source",
}


def markdown(frame: pd.DataFrame, config: Config, plan: Plan) -> str:
    """The table in parts that fit a page, below a paragraph that says what it is."""
    row, people = modality(config.study.target), int(frame["people"].max())
    head = (
        f"{config.study.name}: {plan.seconds:g} s of optimiser steps for each flow, on {config.train.threads} "
        f"thread(s) of {plan.machine['processor']} ({plan.machine['instructions']}), torch {plan.machine['torch']}; "
        f"{people} {'simulated ' if config.embedded else ''}people held out, seeds "
        f"{', '.join(map(str, config.train.seeds))}. Parentheses: 95 % intervals over people. Memory: peak of the "
        f"training process. Bits: -log2 of the density of intensities in {row.unit}, below 0 where it is narrow."
    )
    explained = [
        Column(heading, [str(name) for name in frame if str(name).removeprefix(start).isdigit()], 2)
        for start, heading in EXPLAINED.items()
    ]
    parts = [
        COST,
        [_metric(name, row, interval=True) for name in ACCURACY],
        [*(_metric(name, row, interval=True) for name in SCORES), *COVERAGE],
        [*_likelihood(" + ".join(config.study.sources)), *(column for column in explained if column.names), *SAFETY],
    ]
    return "\n\n".join([head, *(part for columns in parts if (part := table(frame, columns)))]) + "\n"


ACCURACY = ("mae", "psnr", "ssim", "pearson_r", "region_r")
SCORES = ("voxel_crps", "region_crps")
COST = [
    Column("parameters", ["parameters"], 0),
    Column("steps", ["steps"], 0),
    Column("s/step", ["step_seconds"]),
    Column("training (s)", ["train_seconds"], 0),
    Column("pretraining (s)", ["pretrain_seconds"], 0),
    Column("mean (s)", ["mean_seconds"], 0),
    Column("memory (MiB)", ["memory_mib"], 0),
    Column("s/sample", ["sample_seconds"]),
]
COVERAGE = [
    Column(
        f"{what}s in {' / '.join(f'{100 * level:.0f}' for level in LEVELS)} %",
        [f"{what}_coverage_{100 * level:.0f}" for level in LEVELS],
    )
    for what in ("voxel", "region")
]
SAFETY = [
    Column("stress samples", ["stress_samples"], 0),
    Column("voxels not finite", ["stress_nonfinite"], 0),
]


def _likelihood(source: str) -> list[Column]:
    return [
        Column("bits per voxel of the mask", ["bits_in_mask"], 3, interval=True),
        Column(f"own {source} wins over another's (%)", ["own_beats_other"], 0, interval=True, scale=100),
        Column("over its blur (%)", ["own_beats_blurred"], 0, interval=True, scale=100),
    ]


def _metric(name: str, row: Modality, *, interval: bool) -> Column:
    return Column(METRICS[name].heading(row), [name], METRICS[name].digits, interval)
