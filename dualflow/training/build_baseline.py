"""Construction of a baseline for a study: its constructor options, and its regions."""

from __future__ import annotations

import torch

from dualflow.baselines import BASELINES
from dualflow.baselines.baseline import Baseline
from dualflow.baselines.correction import Correction, width_for
from dualflow.baselines.residual_density import ResidualDensity
from dualflow.config import Config
from dualflow.errors import ConfigError
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.model import DualFlow
from dualflow.imaging.regions import region_map
from dualflow.training.flow_spec import flow_spec


def build_baseline(
    config: Config, name: str, shape: tuple[int, int, int], side_features: int, source_channels: int
) -> tuple[Baseline, dict[str, int]]:
    """Return an untrained baseline of a study, and its constructor options for the model card.

    The weights are random numbers of torch's global generator. Without a configured width, a network has about as many
    parameters as the main flow.

    Args:
        config: the study's configuration.
        name: a row of BASELINES.
        shape: model grid, D, H, W.
        side_features: number of side features.
        source_channels: number of source channels.
    """
    row, regions, options = BASELINES[name], region_map(config.preprocess), dict[str, int]()
    kind = row.kind
    if issubclass(kind, Correction):
        if (width := config.baselines.of(name).width) and width not in kind.widths:
            raise ConfigError(
                f"baselines.training.{name}.width = {width}; expected a multiple of {kind.widths.step} from "
                f"{kind.widths.start} to {kind.widths[-1]}"
            )
        options["width"] = config.baselines.of(name).width or width_for(
            kind, _flow_parameters(config, shape, side_features, source_channels), side_features, source_channels
        )
    if issubclass(kind, ResidualDensity):
        options["regions"] = len(regions.names)
    model = row(shape, side_features, source_channels, **options)
    if isinstance(model, ResidualDensity):
        model.set_regions(torch.from_numpy(regions.labels))
    return model, options


def _flow_parameters(config: Config, shape: tuple[int, int, int], side_features: int, source_channels: int) -> int:
    """Return the number of parameters of the main flow's objective."""
    spec = flow_spec(config.model)
    with torch.random.fork_rng(devices=()):
        flow = DualFlow(spec, shape=shape, side_features=side_features, source_channels=source_channels)
    return sum(parameter.numel() for parameter in FlowObjective(flow).parameters())
