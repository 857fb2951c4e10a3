"""What a training shows: curves that training can change, and pictures."""

import numpy as np
import pytest

from dualflow.commands.training_curves import log_curves, watcher
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.flows.flow_objective import FlowObjective
from dualflow.models.store import load_model
from dualflow.tracking.tracked_run import Run


class Recorder(Run):
    """A run that keeps what it gets."""

    def __init__(self):
        self.values, self.images = {}, []

    def metrics(self, values, step=None):
        self.values |= {name: (value, step) for name, value in values.items()}

    def image(self, image, name, step=None):
        self.images.append((name, step, image))


@pytest.fixture
def config():
    """A study whose flow predicts its closed-form mean, which training does not change."""
    return parse_config({"study": {"name": "tiny"}})


@pytest.mark.parametrize(("name", "errors"), [("dualflow", set()), ("unet", {"validation/mae_SUVR"})])
def test_curves_are_those_that_training_changes(config, name, errors):
    """Errors of a fixed mean would be a flat line; losses have their unit."""
    run = Recorder()
    watcher(config, name, run, PairDataset([]))(3, {"validation/mae": 0.1, "seconds": 2.0}, None)
    assert set(run.values) == errors
    assert not run.images
    log_curves(config, name, run, 4, {"train/loss": 1.0, "train/nll": 2.0})
    assert run.values["train/loss_nats_per_voxel"] == (1.0, 4)


def test_a_picture_shows_source_target_estimate_and_sample(config, model_folder, held_out):
    """Middle axial slices side by side, in 0..1, the same at every validation."""
    objective, run = FlowObjective(load_model(model_folder).model), Recorder()
    watch = watcher(config, "dualflow", run, held_out)
    for step in (1, 2):
        watch(step, {}, objective)
    (name, _, first), (_, _, second) = run.images
    assert name == "validation/axial"
    assert first.shape == (16, 4 * 16)
    assert 0 <= first.min() < first.max() <= 1
    np.testing.assert_array_equal(first, second)
    target = held_out[0]["target"][0][:, :, 8].T.flip(0).numpy()
    assert np.corrcoef(first[:, 16:32].ravel(), target.ravel())[0, 1] > 0.9
