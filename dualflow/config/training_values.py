"""The values of a configuration that the training of one model depends on."""

from __future__ import annotations

from typing import Any

from dualflow.config.config import Config
from dualflow.config.learning import SEEDED
from dualflow.config.section import Section

NO_EFFECT = ("seeds", "processes", "device", "memory", "threads", "max_skipped", "max_round_trip")
"""Fields of `train` that change no result of one training, or only its rounding; the last two can only stop it."""
OF_FLOWS = ("steps", "learning_rate")
"""Fields of `train` for flows alone: a network has its own steps and its own learning rate."""


def training_values(config: Config, name: str) -> dict[str, dict[str, Any]]:
    """Return what the training of a model depends on, beside its seed, side information and scans, by section.

    A fit in closed form depends on none of it.

    Args:
        config: configuration of the study.
        name: a flow or a baseline.
    """
    if name in config.flows:
        flow = config.flows[name]
        return {"flow": _values(flow), "train": _values(config.train, *NO_EFFECT, *(("steps",) if flow.steps else ()))}
    if name not in SEEDED:
        return {}
    baseline = config.baselines.of(name)
    # The width of a network follows the main flow's.
    size = {} if baseline.width else {"model": _values(config.model, "steps")}
    return {"baseline": _values(baseline), "train": _values(config.train, *NO_EFFECT, *OF_FLOWS), **size}


def _values(section: Section, *without: str) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=set(without))
