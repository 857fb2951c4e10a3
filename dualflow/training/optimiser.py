"""AdamW with its schedule and the exponential moving average (EMA) of the weights, saved as named tensors."""

from __future__ import annotations

import warnings
from math import cos, isfinite, pi
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dualflow.config import TrainConfig
from dualflow.errors import CheckpointError
from dualflow.training.distributed import SINGLE_PROCESS, ProcessGroup

M = TypeVar("M", bound=nn.Module)

MIN_WARMUP = 20
"""Minimum number of warm-up steps: at the full rate, the first step of a deep flow can diverge."""


class Optimiser(Generic[M]):
    """AdamW with linear warm-up, cosine decay to zero, gradient clipping, and an exponential moving average of weights.

    Args:
        model: its parameters are trained.
        config: decay, clipping, EMA.
        steps: length of the schedule.
        learning_rate: peak rate.
    """

    def __init__(self, model: M, config: TrainConfig, steps: int, learning_rate: float) -> None:
        self.model, self.config = model, config
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decay, betas = config.weight_decay, (0.9, 0.98)
        self.adam = AdamW(self.parameters, lr=learning_rate, betas=betas, weight_decay=decay, fused=True)
        warmup = max(MIN_WARMUP, round(config.warmup * steps))

        def rate(step: int) -> float:
            return min((step + 1) / warmup, 0.5 * (1 + cos(pi * min(1.0, step / steps))))

        self.schedule = LambdaLR(self.adam, rate)
        self.update_ema = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(model, multi_avg_fn=self.update_ema, use_buffers=False)
        self.averages = [parameter for parameter in self.average.module.parameters() if parameter.requires_grad]

    @property
    def averaged(self) -> M:
        """The model with averaged weights."""
        return self.average.module  # type: ignore[return-value]

    def step(self, loss: Tensor, group: ProcessGroup = SINGLE_PROCESS) -> float | None:
        """Take one step; return the gradient norm, or None if it or the loss was not finite and nothing changed.

        All processes skip a step that is not finite in one of them.
        """
        norm = float("nan")
        if group.all_agree(bool(torch.isfinite(loss))):
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        if isfinite(norm):
            self.adam.step()
            self._update_average()
        self.adam.zero_grad(set_to_none=True)  # frees their memory for the next forward pass
        # The schedule counts attempts, so that a resumed run stays in step with its data.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a schedule step without an optimiser step
            self.schedule.step()
        return norm if isfinite(norm) else None

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the EMA as `AveragedModel.update_parameters` does, without copying the buffers of a fitted mean."""
        if self.average.n_averaged == 0:
            self.average.update_parameters(self.model)
            return
        self.update_ema(self.averages, self.parameters, self.average.n_averaged)
        self.average.n_averaged += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a training state: weights, their average, Adam's moments."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for index, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        return tensors

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore the tensors that `tensors` returned after `step` steps.

        Raises:
            CheckpointError: the state belongs to another model.
        """
        try:
            self.model.load_state_dict(_section(tensors, "model."))
            self.average.load_state_dict(_section(tensors, "average."))
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"training state of another model ({first}); remove the state files") from error
        moments: dict[int, dict[str, Any]] = {}
        for key, value in _section(tensors, "adam.").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})
        rates = [
            base * scale(step) for base, scale in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        counts = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        self.schedule.load_state_dict({**self.schedule.state_dict(), **counts})
        for group, rate in zip(self.adam.param_groups, rates, strict=True):
            group["lr"] = rate


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
