"""TrainingContext: the settings of a training, without its model and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from dualflow.config import TrainConfig
from dualflow.flows.objective import Objective
from dualflow.training.closed_form import ClosedFormCache
from dualflow.training.distributed import SINGLE_PROCESS, ProcessGroup

Logger = Callable[[int, Mapping[str, float]], None]
"""Called with step and terms of single training steps."""
Watcher = Callable[[int, Mapping[str, float], Objective], None]
"""Called with step, metrics and the averaged objective at every validation."""


CURVE_POINTS = 100
"""Points of a training curve."""


@dataclass(frozen=True)
class TrainingContext:
    """Settings of one training in one process.

    Attributes:
        config: the `train` section of the configuration.
        folder: folder of the training states.
        seed: seed of the scan order and the noise.
        label: name in the progress display and in errors.
        fingerprint: digest of everything the result depends on: data, model, configuration. States with another
            fingerprint are removed, because resuming from them would mix two trainings.
        group: this process among those that share the training; only the main one writes and tracks.
        watch: called at every validation, for tracking.
        log: called at about CURVE_POINTS steps of the training, for its curves.
        regions: labels `[D, H, W]` of the regions whose means a flow's base models, or None.
        closed_form: solves local linear regressions, and shares fits between the trainings of a study.
    """

    config: TrainConfig
    folder: Path
    seed: int
    label: str = "training"
    fingerprint: str = ""
    group: ProcessGroup = SINGLE_PROCESS
    watch: Watcher | None = None
    log: Logger | None = None
    regions: Tensor | None = None
    closed_form: ClosedFormCache = field(default_factory=ClosedFormCache)

    def part(self, name: str) -> TrainingContext:
        """Return the context of a part of this training, such as its source: with a subfolder and without tracking."""
        return replace(self, folder=self.folder / name, label=f"{self.label}, {name}", watch=None, log=None)
