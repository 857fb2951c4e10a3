"""Construction of a baseline for a study: its constructor options, and its regions."""

from __future__ import annotations

import torch

from dualflow.baselines import BASELINES
from dualflow.baselines.baseline import Baseline
from dualflow.baselines.residual_density import ResidualDensity
from dualflow.baselines.unet import UNet, width_for
from dualflow.config import Config
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.imaging.regions import region_map


def build_baseline(
    config: Config, name: str, shape: tuple[int, int, int], side_features: int, source_channels: int
) -> tuple[Baseline, dict[str, int]]:
    """Return an untrained baseline of a study, and its constructor options for the model card.

    The weights are random numbers of torch's global generator. A U-Net has as many parameters as the main flow.

    Args:
        config: the study's configuration.
        name: a row of BASELINES.
        shape: model grid, D, H, W.
        side_features: number of side features.
        source_channels: number of source channels.
    """
    kind, regions, options = BASELINES[name], region_map(config.preprocess), dict[str, int]()
    if issubclass(kind, UNet):
        spec = preset(config.model.preset, **config.model.options)
        with torch.random.fork_rng(devices=()):  # the flow is built to count its parameters
            flow = DualFlow(spec, shape=shape, side_features=side_features, source_channels=source_channels)
        parameters = sum(parameter.numel() for parameter in FlowObjective(flow).parameters())
        options["width"] = width_for(parameters, side_features, source_channels)
    if issubclass(kind, ResidualDensity):
        options["regions"] = len(regions.names)
    model = kind(shape, side_features, source_channels, **options)
    if isinstance(model, ResidualDensity):
        model.set_regions(torch.from_numpy(regions.labels))
    return model, options
