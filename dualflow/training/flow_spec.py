"""The layers of a configured flow."""

from __future__ import annotations

from dualflow.config import ModelConfig
from dualflow.flows.presets import preset
from dualflow.flows.spec import FlowSpec


def flow_spec(choice: ModelConfig) -> FlowSpec:
    """Return the preset of a flow with its options replaced.

    Raises:
        ConfigError: the preset is unknown, or an option is not accepted.
    """
    return preset(choice.preset, **choice.options)
