"""A study's configuration, checked against the flows that it names before any step runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualflow.config import Config, load_config, parse_config
from dualflow.errors import ConfigError
from dualflow.training.flow_spec import flow_spec


def load_study_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file with `section.key=value` overrides, and check its values, files and flows.

    Raises:
        ConfigError: a value is not accepted, a file is missing, or a flow cannot be built on the model grid.
    """
    config = load_config(path, overrides)
    check_flows(config, str(path))
    return config


def parse_study_config(raw: Mapping[str, Any], name: str = "configuration") -> Config:
    """Check a mapping such as Snakemake's `config` as `load_study_config` does.

    Raises:
        ConfigError: a value is not accepted, a file is missing, or a flow cannot be built on the model grid.
    """
    config = parse_config(raw, name)
    check_flows(config, name)
    return config


def check_flows(config: Config, name: str = "configuration") -> None:
    """Check presets and options of all flows, and the size of the model grid; error messages begin with `name`.

    Raises:
        ConfigError: a preset or option is not accepted, or the model grid does not suit the levels of a flow.
    """
    levels = {}
    for flow, choice in config.flows.items():
        section = f"extra_models.{flow}" if flow in config.extra_models else "model"
        try:
            levels[flow] = flow_spec(choice).levels
        except ConfigError as error:
            raise ConfigError(f"{name}: {section}: {error}") from None
    deepest = max(levels, key=lambda flow: levels[flow])
    unit, shape = 2 ** levels[deepest], config.preprocess.shape
    if any(size % unit for size in shape):
        nearest = [max(1, (size + unit // 2) // unit) * unit for size in shape]
        raise ConfigError(
            f"{name}: preprocess.shape = {list(shape)}: the flow {deepest} has {levels[deepest]} levels, expected "
            f"multiples of {unit}; the nearest sizes are {nearest}"
        )
