"""Training of a flow on six tiny phantoms."""

import pytest

from dualflow.config import ModelConfig
from dualflow.training.closed_form import ClosedFormCache
from dualflow.training.context import TrainingContext
from dualflow.training.train_flow import train_flow


@pytest.fixture(scope="session")
def fits(tmp_path_factory):
    """Folder of the closed-form fits to the phantoms, which take seconds and are the same for many flows."""
    return tmp_path_factory.mktemp("fits")


@pytest.fixture
def train(phantoms, held_out, quick, tmp_path, fits):
    """Train a flow, with its states in a folder."""

    def run(choice, folder="states", config=quick, pairs=phantoms, seed=0, **options):
        if pairs is phantoms:
            options = {"closed_form": ClosedFormCache(fits, "phantoms"), **options}
        context = TrainingContext(config, tmp_path / folder, seed, label="flow", **options)
        return train_flow(choice, pairs, held_out, context)

    return run


@pytest.fixture
def small_default():
    """The default flow, with few and narrow steps."""
    options = {"levels": 2, "steps": [1, 1], "hidden": [4, 4], "context_channels": 4, "low_rank": 4}
    return ModelConfig(preset="dualflow", options=options)
