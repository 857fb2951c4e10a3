"""History of a training: one entry per validation, and totals."""

from __future__ import annotations

from dataclasses import dataclass, field


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
