"""Models on disk, as training leaves them."""

import pytest
import torch

from dualflow.flows.local_linear import RegressionScan, fit_local_linear
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.training.checkpoint import save_model


@pytest.fixture(scope="session")
def save_flow():
    """Write a flow with its card, not trained but, given pairs, with mean and initialisation; return the folder."""

    def save(folder, choice, card, pairs=None):
        torch.manual_seed(0)
        spec = preset(choice.preset, **choice.options)
        channels = 1 + len(card["study"].get("extra_sources", ()))
        model = DualFlow(spec, shape=tuple(card["shape"]), side_features=1, source_channels=channels)
        if pairs is not None:
            scans = [
                RegressionScan(item["source"], item["target"], item["side"], item["mask"], fold % 2)
                for fold, item in enumerate(pairs.items)
            ]
            fit_local_linear(scans, model.mean_model)
            stacked = (torch.stack([item[name] for item in pairs.items]) for name in ("target", "source", "side"))
            model.initialize(*stacked)
        save_model(folder, model.state_dict(), card | {"spec": spec.to_dict()})
        return folder

    return save


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, save_flow, small_flow, card, phantoms):
    """A small flow for the phantoms."""
    return save_flow(tmp_path_factory.mktemp("model"), small_flow, card, phantoms)
