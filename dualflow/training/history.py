"""History of a training, with one entry per validation and totals, and the result of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dualflow.flows.interface import ConditionalModel
from dualflow.models.card import TrainingRecord

M = TypeVar("M", bound=ConditionalModel)


@dataclass
class History:
    """Metrics and totals of a training.

    Attributes:
        entries: step, learning rate, gradient norm, training terms and `validation/` terms.
        best: lowest selection score so far.
        best_step: step of the lowest score, 0 before the first validation.
        skipped: number of steps that changed nothing because their loss or gradient was not finite.
        seconds: time spent in optimiser steps, over all resumptions.
    """

    entries: list[dict[str, float]] = field(default_factory=list)
    best: float = float("inf")
    best_step: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Number of steps at the last validation; a training without patience takes all that it was given."""
        return int(self.entries[-1]["step"]) if self.entries else 0


@dataclass(frozen=True)
class TrainingResult(Generic[M]):
    """A trained model with its history.

    Attributes:
        model: in evaluation mode, with the averaged weights of the best validation.
        history: of the gradient steps of the last stage; empty for a closed form.
        record: training record for the model card.
    """

    model: M
    history: History
    record: TrainingRecord
