"""Training of a baseline: what its network learns from."""

import pytest
import torch

from dualflow.baselines.cvae import ConditionalVAE
from dualflow.baselines.unet import HeteroscedasticUNet, UNet
from dualflow.config.learning import BaselineTraining
from dualflow.training import train_baseline as module
from dualflow.training.context import TrainingContext
from dualflow.training.history import History


class Trained:
    """A trainer that only takes down its pairs."""

    def __init__(self, objective, pairs, *args, **options):
        Trained.pairs = pairs

    def fit(self):
        return History()


@pytest.mark.parametrize(("kind", "divides"), [(HeteroscedasticUNet, True), (ConditionalVAE, True), (UNet, False)])
def test_scans_carry_the_map_by_which_the_network_divides(
    phantoms, held_out, quick, tmp_path, monkeypatch, kind, divides
):
    """Augmentation moves it with them. All have their cross-fitted predictions."""
    monkeypatch.setattr(module, "Trainer", Trained)
    model = kind((16, 16, 16), 1, width=8)
    context = TrainingContext(quick, tmp_path, 0, label="toy")
    module.train_baseline(model, phantoms, held_out, context, BaselineTraining(steps=2))
    assert "mean" in Trained.pairs[0]
    assert ("spread" in Trained.pairs[0]) == divides
    if divides:
        assert torch.equal(Trained.pairs[0]["spread"], model.unit())
        assert model.unit().std() > 0
