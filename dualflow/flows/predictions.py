"""PREDICTIONS: point predictions of a flow, by name."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualflow.errors import ConfigError

if TYPE_CHECKING:  # the model imports this module
    from dualflow.flows.model import DualFlow


def predict(flow: DualFlow, source: Tensor, side: Tensor | None, kind: str) -> Tensor:
    """Return one image `[N, C, D, H, W]` by the prediction named `kind`, a row of PREDICTIONS.

    The seed of the noise is a digest of the source, so predictions are deterministic.

    Raises:
        ConfigError: the kind has no row, or needs a mean model.
    """
    if kind not in PREDICTIONS:
        raise ConfigError(f"unknown prediction '{kind}'; choose from: {', '.join(PREDICTIONS)}")
    if kind == "mean" and flow.spec.mean == "none":
        raise ConfigError("prediction 'mean' of a flow with mean: none; choose temperature0, or sample_mean")
    return PREDICTIONS[kind](flow, source, side)


def _mean(flow: DualFlow, source: Tensor, side: Tensor | None) -> Tensor:
    return flow.mean(source, side)


def _temperature0(flow: DualFlow, source: Tensor, side: Tensor | None) -> Tensor:
    return flow.sample(source, side, temperature=0.0)[0]


def _one_sample(flow: DualFlow, source: Tensor, side: Tensor | None) -> Tensor:
    return _mean_of_samples(flow, source, side, 1)


def _sample_mean(flow: DualFlow, source: Tensor, side: Tensor | None) -> Tensor:
    return _mean_of_samples(flow, source, side, flow.spec.prediction_samples)


def _mean_of_samples(flow: DualFlow, source: Tensor, side: Tensor | None, n: int) -> Tensor:
    """Mean of n samples of each subject, `[N, C, D, H, W]`.

    The noise of a subject does not depend on the rest of the batch, and differs between subjects, so that it averages
    out over a study.
    """
    means = []
    for index, volume in enumerate(torch.split(source, 1)):
        digest = sha256(volume.detach().cpu().float().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
        values = None if side is None else side[index : index + 1]
        means.append(flow.sample(volume, values, n, generator=generator).mean(dim=0))
    return torch.cat(means)


PREDICTIONS: dict[str, Callable[[DualFlow, Tensor, Tensor | None], Tensor]] = {
    "mean": _mean,
    "temperature0": _temperature0,
    "one_sample": _one_sample,
    "sample_mean": _sample_mean,
}
