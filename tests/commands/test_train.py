"""The train command: what a model learns from, what identifies a training, and what it leaves on disk."""

from contextlib import nullcontext

import pandas as pd
import pytest
import torch

from dualflow.baselines import BASELINES
from dualflow.commands import train as module
from dualflow.commands.train import LearningData, _constant_spread, _fingerprint, _train_baseline, train
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.errors import ConfigError
from dualflow.models.store import load_card
from dualflow.tracking.tracked_run import Run
from dualflow.training.checkpoint import states
from dualflow.training.context import TrainingContext

PRETRAINED = {
    "steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "transition_steps": 1, "source_pretrain": 0.5,
}  # fmt: skip


def learning_data(card, training, validation, manifests="same"):
    """The data of a study of phantoms."""
    pairs = pd.DataFrame({"scan": training.scans, "split": "train"})
    digests = {item["scan"]: manifests for item in [*training.items, *validation.items]}
    return LearningData(pairs, card.side, training, validation, digests)


def test_the_unet_is_trained_on_cross_fitted_predictions(phantoms, held_out, card, quick, tmp_path, monkeypatch):
    """Training pairs carry a regression fitted without their subject, which is worse; validation pairs carry none."""
    trainers = []

    def spy(trainer):
        trainers.append(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Trainer, "fit", spy)
    config = parse_config({"study": {"name": "tiny"}})
    subjects = PairDataset([{**item, "scan": f"{item['scan']}_ses-1"} for item in phantoms.items])
    context = TrainingContext(quick, tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        _train_baseline(config, "unet", learning_data(card, subjects, held_out), context)
    trainer = trainers[0]
    unet, errors = trainer.objective.model, {"left out": 0.0, "included": 0.0}
    for item in trainer.train.items:
        included = unet.voxelwise.point_estimate(item["source"][None], item["side"][None])[0]
        for name, image in (("left out", item["mean"]), ("included", included)):
            errors[name] += float((image - item["target"])[item["mask"]].square().mean())
    assert errors["left out"] > 1.2 * errors["included"] > 0
    assert "mean" not in trainer.validation[0]


def test_without_validation_scans_there_is_no_spread():
    """Nothing else tells how far a point estimate is off new subjects."""
    model = BASELINES["mean_image"]((8, 8, 8))
    assert _constant_spread(parse_config({"study": {"name": "tiny"}}), model, PairDataset([])) is None


def test_an_unknown_model_is_one_line():
    """It names the models there are, before any scan is read."""
    with pytest.raises(ConfigError, match="unknown model 'wizard'; choose from: dualflow, mean_image"):
        train(parse_config({"study": {"name": "tiny"}}), ["dualflow", "wizard"], 0)


@pytest.fixture
def fingerprint(phantoms, held_out, card):
    """Fingerprint of a training of the default flow on the phantoms, with changes."""

    def of(values=None, name="dualflow", training=phantoms, validation=held_out, manifests="same"):
        config = parse_config({"study": {"name": "tiny"}, **(values or {})})
        return _fingerprint(config, name, learning_data(card, training, validation, manifests))

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
def test_unrelated_values_leave_the_fingerprint(fingerprint, values):
    """Other models, seeds, folders and scores do not matter."""
    assert fingerprint(values) == fingerprint()


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"learning_rate": 1e-3}},
        {"train": {"steps": 700}},
        {"train": {"precision": "float32"}},
        {"model": {"options": {"noise": 0.02}}},
    ],
)
def test_values_of_the_training_change_the_fingerprint(fingerprint, values):
    """Rate, length, format, and options of the flow that change no shape."""
    assert fingerprint(values) != fingerprint()


def test_data_splits_and_side_values_change_the_fingerprint(fingerprint, phantoms, held_out):
    """Another preprocessing, another subject's age, or a subject moved from one split to the other."""
    aged = PairDataset([{**item, "side": item["side"] + 1} for item in phantoms.items])
    moved = PairDataset(phantoms.items[:-1]), PairDataset([phantoms.items[-1], *held_out.items])
    changed = [
        fingerprint(manifests="other"),
        fingerprint(training=aged),
        fingerprint(training=moved[0], validation=moved[1]),
        fingerprint(name="unet"),
    ]
    assert len({fingerprint(), *changed}) == 5
    assert torch.isnan(phantoms[1]["side"]).all(), "one value is unknown, which is no obstacle"


def test_the_card_records_pretraining_and_states_are_forgotten(tmp_path, phantoms, held_out, card, monkeypatch):
    """Steps and seconds are in the card; states of flow and source stay until the manifest is written."""
    config = parse_config(
        {
            "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
            "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
            "model": {"preset": "srflow", "options": PRETRAINED},
            "train": {"steps": 4, "validate_every": 2, "precision": "float32"},
        }
    )
    data = learning_data(card, phantoms, held_out)
    monkeypatch.setattr(LearningData, "load", classmethod(lambda cls, config: data))
    monkeypatch.setattr(module, "tracked", lambda *_: nullcontext(Run()))
    folder, write = config.layout.model("srflow", 0), module.write_manifest
    kept = []

    def watched(*arguments, **options):
        kept.extend(len(states(place)) for place in (folder, folder / "source"))
        write(*arguments, **options)

    monkeypatch.setattr(module, "write_manifest", watched)
    train(config, ["srflow"], 0)
    record = load_card(folder).training
    assert record.pretrain_steps == 2
    assert record.pretrain_seconds > 0
    assert pd.read_csv(folder / "history.tsv", sep="\t")["step"].tolist() == [2]
    assert all(kept)
    assert not list(folder.rglob("state-*"))
