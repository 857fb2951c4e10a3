"""What makes two trainings the same: only then may one go on from the states of the other."""

import pytest
import torch

from dualflow.commands.train import _identity
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset


@pytest.fixture
def identity(phantoms, held_out):
    """Identity of a training of the default flow on the phantoms, with changes."""

    def of(values=None, name="dualflow", train=phantoms, validation=held_out, manifests="same"):
        config = parse_config({"study": {"name": "tiny"}, **(values or {})})
        data = {item["scan"]: manifests for item in [*train.items, *validation.items]}
        return _identity(config, name, data, (train, validation))

    return of


@pytest.mark.parametrize(
    "values",
    [
        {"study": {"name": "tiny", "results": "elsewhere"}},
        {"train": {"seeds": [0, 1]}},
        {"baselines": {"models": ["unet"]}},
        {"evaluate": {"bootstrap": 100}},
        {"extra_models": {"other": {"preset": "dual_glow"}}},
    ],
)
def test_what_changes_no_training_leaves_it(identity, values):
    """Other models, seeds, folders and scores are not its business."""
    assert identity(values) == identity()


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"learning_rate": 1e-3}},
        {"train": {"steps": 700}},
        {"train": {"precision": "float32"}},
        {"model": {"options": {"noise": 0.02}}},
    ],
)
def test_what_changes_a_training_changes_it(identity, values):
    """Rate, length, format, and options of the flow that change no shape."""
    assert identity(values) != identity()


def test_data_splits_and_side_values_change_it(identity, phantoms, held_out):
    """Another preprocessing, another person's age, or a person moved from one split to the other."""
    aged = PairDataset([{**item, "side": item["side"] + 1} for item in phantoms.items])
    moved = PairDataset(phantoms.items[:-1]), PairDataset([phantoms.items[-1], *held_out.items])
    others = [
        identity(manifests="other"),
        identity(train=aged),
        identity(train=moved[0], validation=moved[1]),
        identity(name="unet"),
    ]
    assert len({identity(), *others}) == 5
    assert torch.isnan(phantoms[1]["side"]).all(), "one of them is unknown, and that is no obstacle"
