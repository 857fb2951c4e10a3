"""Baselines: the models that the flow is compared with."""

from dualflow.baselines.registry import BASELINES
from dualflow.baselines.unet import width_for

__all__ = ["BASELINES", "width_for"]
