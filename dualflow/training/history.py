"""What happened in a training: an entry per validation, and totals."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """The course of a training.

    Attributes:
        entries: step, learning rate, gradient norm, training terms and `validation/` terms.
        best: lowest selection score so far.
        best_step: the step it was reached at.
        skipped: steps whose loss or gradient was not finite, which changed nothing.
        seconds: time spent in optimiser steps, over all resumptions.
    """

    entries: list[dict[str, float]] = field(default_factory=list)
    best: float = float("inf")
    best_step: int = 0
    skipped: int = 0
    seconds: float = 0.0
