"""Shared fixtures: tiny phantoms, and a small flow for them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dualflow.config import ModelConfig, TrainConfig
from dualflow.data.dataset import PairDataset
from dualflow.flows.closed_form_fits import fit_closed_form
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import preset
from dualflow.flows.regression_scans import RegressionScan
from dualflow.models.card import ModelCard
from dualflow.models.store import save_model
from dualflow.revisions import REVISIONS

SHAPE = (16, 16, 16)
SMALL = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "low_rank": 2}
SIDE = {"columns": [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 8.0, "low": 55.0, "high": 86.0}]}


def phantom(index, shape=SHAPE):
    """Return a smooth source, a target correlated with it, an ellipsoidal mask, and an age; subject 2 has no age."""
    rng = np.random.default_rng(index)
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    mask = sum(axis**2 for axis in axes) < 0.8
    source = 0.5 + 3 * gaussian_filter(rng.normal(size=shape), 2)
    target = 1 + 0.8 * (source - 0.5) + gaussian_filter(rng.normal(size=shape), 1) / 2
    volumes = {name: torch.tensor(np.where(mask, image, 0)[None]).float() for name, image in
               (("source", source), ("target", target))}  # fmt: skip
    age = float("nan") if index == 2 else (index - 3) / 2
    return {**volumes, "mask": torch.tensor(mask[None]), "side": torch.tensor([age]), "scan": f"sub-{index:02d}"}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Put the longest groups first, then all with slow tests, so that no worker waits for them at the end.

    Other tests of a module are a group, so that one worker alone makes the module's fixtures.
    """
    items.sort(key=lambda item: [item.get_closest_marker(mark) is None for mark in ("workflow", "slow")])
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def phantoms():
    """Six training subjects."""
    return PairDataset([phantom(index) for index in range(1, 7)])


@pytest.fixture(scope="session")
def held_out():
    """Two validation subjects."""
    return PairDataset([phantom(index) for index in (7, 8)])


@pytest.fixture(scope="session")
def small_flow():
    """A small version of the default flow."""
    return ModelConfig(preset="dualflow", options=SMALL)


@pytest.fixture(scope="session")
def quick():
    """A training of six steps in float32."""
    return TrainConfig(steps=6, validate_every=2, precision="float32", batch_size=2)


@pytest.fixture(scope="session")
def card():
    """Model card of a flow for the phantoms; tests replace its spec or kind."""
    return ModelCard(
        name="dualflow", seed=0, kind="flow", shape=SHAPE, side=SIDE, spec=preset("dualflow", **SMALL),
        study={"name": "phantoms", "source": "T1w", "target": "FDG", "side": ["age"]},
        constant_spread={"voxel": 0.25, "region": 0.125, "regions": 3}, preprocess_revision=REVISIONS["preprocess"],
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """Seed torch, so that no test depends on the tests that ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def save_flow():
    """Save an untrained flow with its card; with pairs, its mean is fitted and its layers are initialised."""

    def save(folder, choice, card, pairs=None):
        torch.manual_seed(0)
        spec = preset(choice.preset, **choice.options)
        model = DualFlow(spec, shape=card.shape, side_features=1, source_channels=card.source_channels)
        if pairs is not None:
            scans = [
                RegressionScan(item["source"], item["target"], item["side"], item["mask"], fold % 2, fold)
                for fold, item in enumerate(pairs.items)
            ]
            fit_closed_form(scans, model.mean_model)
            stacked = (torch.stack([item[name] for item in pairs.items]) for name in ("target", "source", "side"))
            initialize_flow(model, Batch(*stacked))
        save_model(folder, model, card.model_copy(update={"spec": spec}))
        return folder

    return save


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, save_flow, small_flow, card, phantoms):
    """Folder of a small flow for the phantoms."""
    return save_flow(tmp_path_factory.mktemp("model"), small_flow, card, phantoms)


@pytest.fixture(scope="session")
def registry_uri(tmp_path_factory):
    """URI of an MLflow store for registered models; creating one takes seconds, so tests share it."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
