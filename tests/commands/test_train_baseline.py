"""Training of a baseline: what it is trained on, and the spread it is given."""

import pytest
import torch

from dualflow.baselines import BASELINES
from dualflow.commands import train as module
from dualflow.commands.train import Job, _constant_spread, _train_baseline
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.data.side_encoder import SideEncoder
from dualflow.training.distributed import Ranks


def test_the_unet_is_trained_on_cross_fitted_predictions(phantoms, held_out, card, monkeypatch):
    """Training pairs carry the regression of the people left out, worse than the final one; validation pairs none."""
    given = {}

    def spy(model, training, validation, *rest, **options):
        given.update(model=model, training=training, validation=validation)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", spy)
    config = parse_config({"study": {"name": "tiny"}})
    people = PairDataset([{**item, "scan": f"{item['scan']}_ses-1"} for item in phantoms.items])
    job = Job(config, "unet", 0, SideEncoder.from_dict(card["side"]), people, held_out, "", lambda *_: None, Ranks())
    with pytest.raises(KeyboardInterrupt):
        _train_baseline(job)
    errors = {"left out": 0.0, "seen": 0.0}
    for item in given["training"].items:
        seen = given["model"].voxelwise.point_estimate(item["source"][None], item["side"][None])[0]
        for name, image in (("left out", item["mean"]), ("seen", seen)):
            errors[name] += float((image - item["target"])[item["mask"]].square().mean())
    assert errors["left out"] > 1.2 * errors["seen"] > 0
    assert "mean" not in given["validation"][0]


def test_without_validation_people_there_is_no_spread():
    """Nothing else says how far a point estimate is off new people."""
    model = BASELINES["mean_image"]((8, 8, 8))
    with torch.no_grad():
        assert _constant_spread(parse_config({"study": {"name": "tiny"}}), model, PairDataset([])) is None
