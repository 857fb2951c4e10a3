"""Completion of a measured target with missing voxels: a field of view that cuts the brain, missing slices."""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.errors import ConfigError, ShapeError
from dualflow.flows.dequantization import prepare_target
from dualflow.flows.missing_voxels import fill_missing
from dualflow.flows.model import DualFlow
from dualflow.flows.rng import EVALUATION_SEED
from dualflow.inference.edit import Subject


@torch.no_grad()
def interpolate_missing(flow: DualFlow, subject: Subject, known: Tensor) -> Tensor:
    """Return the target with its missing voxels filled, `[N, C, D, H, W]`, in its unit; known voxels stay.

    Latents whose voxels are missing are interpolated from encoded neighbours, with weights that depend on the source
    (Mao et al. 2022, PU-Flow). Far from known voxels the result is the decode at temperature 0. It is a point estimate,
    not a draw.

    Args:
        flow: a flow trained with `interpolation_l1`.
        subject: its target may hold any value, NaN too, where it is missing.
        known: `[N, 1, D, H, W]`, bool: where the target was measured.

    Raises:
        ConfigError: the flow has no interpolation.
        InputError: an input has the wrong shape, dtype or values.
    """
    if not len(flow.interpolations):
        raise ConfigError(
            "this flow has no interpolation; train it with model.options: {interpolation_l1: 1.0, whitening: false}"
        )
    if known.dtype != torch.bool or known.shape != (len(subject.source), 1, *flow.shape):
        raise ShapeError(
            f"known is {known.dtype} of size {tuple(known.shape)}, expected torch.bool of size "
            f"{(len(subject.source), 1, *flow.shape)}; give one map of measured voxels per subject"
        )
    measured = torch.where(known, subject.target, 0.0)
    target = prepare_target(measured, subject.mask, flow.spec, torch.Generator().manual_seed(EVALUATION_SEED))
    flow.check_inputs(subject.source, subject.side, target=target)
    return fill_missing(flow, target, known, flow.condition(subject.source, subject.side))
