"""AdamW, its schedule and the running mean of the weights, and their states as named tensors."""

from __future__ import annotations

import warnings
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dualflow.config import TrainConfig
from dualflow.errors import CheckpointError
from dualflow.training.distributed import ALONE, Ranks

LEAST_WARMUP = 20
"""Steps of warm-up, however short the training: at its full rate the first step of a deep flow alone can burst it."""


class Optimiser:
    """AdamW with warm-up then cosine to zero, clipping, and an exponential running mean of the weights.

    Args:
        model: what is trained.
        config: rates, decay, clipping, EMA.
        steps: length of the schedule.
        learning_rate: peak rate.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, steps: int, learning_rate: float) -> None:
        self.model, self.config = model, config
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decay, betas = config.weight_decay, (0.9, 0.98)
        self.adam = AdamW(self.parameters, lr=learning_rate, betas=betas, weight_decay=decay, fused=True)
        warmup = max(LEAST_WARMUP, round(config.warmup * steps))

        def rate(step: int) -> float:
            return min((step + 1) / warmup, 0.5 * (1 + cos(pi * min(1.0, step / steps))))

        self.schedule = LambdaLR(self.adam, rate)
        self.towards = _running_mean(config.ema)
        self.average = AveragedModel(model, multi_avg_fn=self.towards, use_buffers=False)
        self.averages = [own for own in self.average.module.parameters() if own.requires_grad]

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights."""
        module: nn.Module = self.average.module
        return module

    def step(self, loss: Tensor, ranks: Ranks = ALONE) -> float | None:
        """Take one step; return the gradient norm, or None if something was not finite and nothing was changed.

        What is finite in one of several processes counts only if it is in all: they go on together.
        """
        norm = float("nan")
        if ranks.all_agree(bool(torch.isfinite(loss))):
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        finite = norm == norm and abs(norm) != float("inf")
        if finite:
            self.adam.step()
            self._update_average()
        self.adam.zero_grad(set_to_none=True)  # here, so that the next forward pass has their memory
        # The schedule counts attempts, so that a resumed run stays in step with its data.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a schedule that steps without the optimiser: a skipped step
            self.schedule.step()
        return norm if finite else None

    @torch.no_grad()
    def _update_average(self) -> None:
        """As `AveragedModel.update_parameters`, which also copies all buffers; they are those of a fitted mean."""
        if self.average.n_averaged == 0:
            self.average.update_parameters(self.model)
            return
        self.towards(self.averages, self.parameters, self.average.n_averaged)
        self.average.n_averaged += 1

    def tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly: weights, their mean, Adam's moments."""
        found = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        found |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for index, state in self.adam.state_dict()["state"].items():
            found |= {f"adam.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        return found

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take up what `tensors` gave after `step` steps.

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
        schedule = self.schedule.state_dict()
        self.schedule.load_state_dict({**schedule, "last_epoch": step, "_step_count": step + 1})
        for group, base, scale in zip(
            self.adam.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * scale(step)


def _running_mean(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
