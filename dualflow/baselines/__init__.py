"""Baselines: the models that the flow is compared with."""

from dualflow.baselines.correction import width_for
from dualflow.baselines.registry import BASELINES

__all__ = ["BASELINES", "width_for"]
