"""The comparison table as Markdown, in parts that fit a page and line up on a terminal."""

from __future__ import annotations

import pandas as pd

from dualflow.config import Config
from dualflow.data.markdown import Column, table
from dualflow.evaluation.calibration import LEVELS
from dualflow.evaluation.study_metrics import measure
from dualflow.modalities import Modality, modality
from dualflow.training.budget import Plan

ACCURACY = ("mae", "psnr", "ssim", "pearson_r", "region_r")
SCORES = ("voxel_crps", "region_crps")
JOINT = ("energy_score", "contrast_crps", "contrast_pit_distance", "person_spread_r")
COST = [
    Column("parameters", ["parameters"], 0),
    Column("steps", ["steps"], 0),
    Column("s/step", ["step_seconds"]),
    Column("training (s)", ["train_seconds"], 0),
    Column("pre-training (s)", ["pretrain_seconds"], 0),
    Column("mean (s)", ["mean_seconds"], 0),
    Column("memory (MiB)", ["memory_mib"], 0),
    Column("s/sample", ["sample_seconds"]),
]
COVERAGE = [
    Column(
        f"{kind} coverage at {' / '.join(f'{100 * level:.0f}' for level in LEVELS)} %",
        [f"{kind}_coverage_{100 * level:.0f}" for level in LEVELS],
    )
    for kind in ("voxel", "region")
]
STRESS = [
    Column("stress samples", ["stress_samples"], 0),
    Column("non-finite voxels", ["stress_nonfinite"], 0),
]
EXPLAINED = {
    "explained_level_": "latent variance explained by level, finest first",
    "explained_other_level_": "explained by another subject's source",
}


def comparison_markdown(frame: pd.DataFrame, config: Config, plan: Plan) -> str:
    """Markdown tables of `frame` below a paragraph that describes the comparison."""
    row, subjects = modality(config.study.target), int(frame["subjects"].max())
    head = (
        f"{config.study.name}: {plan.seconds:g} s of optimiser steps per flow, {config.train.threads} thread(s) of "
        f"{plan.machine['processor']} ({plan.machine['instructions']}), torch {plan.machine['torch']}; {subjects} "
        f"held-out {'simulated ' if config.embedded else ''}subjects, seeds "
        f"{', '.join(map(str, config.train.seeds))}. Parentheses: 95 % intervals over subjects. Memory: peak of the "
        f"training process. Bits: negative log2 density of the intensities in {row.unit}; a density above 1 gives "
        "negative bits."
    )
    explained = [
        Column(heading, [str(name) for name in frame if str(name).removeprefix(prefix).isdigit()], 2)
        for prefix, heading in EXPLAINED.items()
    ]
    parts = [
        COST,
        [_metric(name, row) for name in ACCURACY],
        [*(_metric(name, row) for name in SCORES), *COVERAGE],
        [_metric(name, row) for name in JOINT],
        [*_likelihood(" + ".join(config.study.sources)), *(column for column in explained if column.names), *STRESS],
    ]
    return "\n\n".join([head, *(part for columns in parts if (part := table(frame, columns)))]) + "\n"


def _likelihood(source: str) -> list[Column]:
    return [
        Column("bits per voxel of the mask", ["bits_in_mask"], 3, interval=True),
        Column("slack of the bits", ["bits_slack"]),
        Column(f"true {source} likelier than another subject's (%)", ["true_beats_wrong"], 0, interval=True, scale=100),
        Column("than its blur (%)", ["true_beats_blurred"], 0, interval=True, scale=100),
    ]


def _metric(name: str, row: Modality) -> Column:
    return Column(measure(name).heading(row), [name], measure(name).digits, interval=True)
