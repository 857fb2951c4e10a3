"""The train command: data of networks, spread of point estimates, and output files."""

import shutil
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from learning_phantoms import learning_data

from dualflow.baselines import BASELINES
from dualflow.commands import train as module
from dualflow.commands.learning_data import LearningData
from dualflow.commands.train import Trained, _constant_spread, _selected, _train_baseline, train
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.errors import ConfigError
from dualflow.imaging.intensity import INSIDE
from dualflow.imaging.regions import RegionMap
from dualflow.models.card import TrainingRecord
from dualflow.models.store import load_card
from dualflow.tracking.tracked_run import Run
from dualflow.training.checkpoint import states
from dualflow.training.context import TrainingContext
from dualflow.training.distributed import ProcessGroup
from dualflow.training.history import History
from dualflow.training.trainer import Trainer

PRETRAINED = {
    "steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "transition_steps": 1, "source_pretrain": 0.5,
}  # fmt: skip


def test_the_unet_is_trained_on_cross_fitted_predictions(phantoms, held_out, card, quick, tmp_path, monkeypatch):
    """The regression of a training pair is fitted without its subject, so it is worse; validation pairs have none."""
    trainers = []

    def spy(trainer):
        trainers.append(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", spy)
    config = parse_config({"study": {"name": "tiny"}})
    subjects = PairDataset([{**item, "scan": f"{item['scan']}_ses-1"} for item in phantoms.items])
    context = TrainingContext(quick, tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        _train_baseline(config, "unet", learning_data(card, subjects, held_out), context)
    trainer = trainers[0]
    unet, errors = trainer.objective.model, {"cross-fitted": 0.0, "in-sample": 0.0}
    for item in trainer.train.items:
        in_sample = unet.mean.point_estimate(item["source"][None], item["side"][None])[0]
        for name, image in (("cross-fitted", item["mean"]), ("in-sample", in_sample)):
            errors[name] += float((image - item["target"])[item["mask"]].square().mean())
    assert errors["cross-fitted"] > 1.2 * errors["in-sample"] > 0
    assert "mean" not in trainer.validation[0]


def test_without_validation_scans_there_is_no_spread():
    """The spread is estimated on validation scans only."""
    model = BASELINES["mean_image"]((8, 8, 8))
    assert _constant_spread(parse_config({"study": {"name": "tiny"}}), model, PairDataset([])) is None


def test_scans_that_show_no_region_leave_the_spread_of_regions_to_others(held_out, monkeypatch):
    """With a region in view of one scan alone, its error counts; without any the spread of voxels is known."""
    config, model = parse_config({"study": {"name": "tiny"}}), BASELINES["mean_image"]((16, 16, 16))
    labels = np.zeros((16, 16, 16), int)
    labels[4:12, 4:12, 4:12] = 1
    blind = {**held_out[1], "mask": held_out[1]["mask"] & ~torch.from_numpy(labels[None] > 0)}
    for scans, regions, known in (([held_out[0], blind], ("a",), True), ([blind], ("a",), False), ([blind], (), False)):
        atlas = RegionMap(labels * len(regions), regions, (12.0, 12.0, 12.0))
        monkeypatch.setattr(module, "region_map", lambda _, atlas=atlas: atlas)
        spread = _constant_spread(config, model, PairDataset(scans))
        assert spread.voxel > 0
        assert (spread.region > 0) == known


def test_a_region_hardly_in_view_has_no_part_in_the_spread(held_out, monkeypatch):
    """Its few voxels in view are no region mean."""
    config, model = parse_config({"study": {"name": "tiny"}}), BASELINES["mean_image"]((16, 16, 16))
    labels = np.ones((16, 16, 16), int)
    labels[:, 8:] = 2
    target = held_out[0]["target"].clone()
    target[:, :, 9:] = float(INSIDE)
    atlas = RegionMap(labels, ("a", "b"), (12.0, 12.0, 12.0))
    monkeypatch.setattr(module, "region_map", lambda _: atlas)
    expected = target[0, :, :8][held_out[0]["mask"][0, :, :8]].mean()
    spread = _constant_spread(config, model, PairDataset([{**held_out[0], "target": target}]))
    assert spread.region == pytest.approx(float(expected), rel=1e-5)


def test_people_with_many_visits_weigh_as_much_in_the_spread_as_others(held_out, monkeypatch):
    """Three visits of one person change nothing."""
    config, model = parse_config({"study": {"name": "tiny"}}), BASELINES["mean_image"]((16, 16, 16))
    atlas = RegionMap(np.ones((16, 16, 16), int), ("a",), (12.0, 12.0, 12.0))
    monkeypatch.setattr(module, "region_map", lambda _: atlas)
    visits = [{**held_out[1], "scan": f"{held_out[1]['scan']}_ses-{visit}"} for visit in (1, 2, 3)]
    once = _constant_spread(config, model, PairDataset([held_out[0], visits[0]]))
    often = _constant_spread(config, model, PairDataset([held_out[0], *visits]))
    assert [often.voxel, often.region] == pytest.approx([once.voxel, once.region], rel=1e-6)


def test_the_selected_weights_are_tracked():
    """The last step is not the one whose weights are kept; a closed form has no steps."""
    config = parse_config({"study": {"name": "tiny"}})
    history = History([{"step": 100.0, "nll": -1.5, "validation/nll": -1.4}], best=-1.6, best_step=50)
    trained = Trained(None, "flow", TrainingRecord(best_step=50), history, 1)
    assert _selected(config, trained) == {"train/best_step": 50.0, "validation/best_score_nats_per_voxel": -1.6}
    assert _selected(config, Trained(None, "mean_image", TrainingRecord(), History(), 0)) == {}


def test_an_unknown_model_is_refused():
    """The error lists the models of the study, before any scan is read."""
    with pytest.raises(ConfigError, match="unknown model 'no_such_model'; choose from: dualflow, mean_image"):
        train(parse_config({"study": {"name": "tiny"}}), ["dualflow", "no_such_model"], 0)


def test_the_card_records_pretraining_and_states_are_removed(tmp_path, phantoms, held_out, card, monkeypatch):
    """The card has steps and seconds; training states remain until the manifest is written."""
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
    monkeypatch.setattr(module, "model_run", lambda *_: nullcontext(Run()))
    folder, write = config.layout.model("srflow", 0), module.write_manifest
    state_counts = []

    def spy(*arguments, **options):
        state_counts.extend(len(states(path)) for path in (folder, folder / "source"))
        write(*arguments, **options)

    monkeypatch.setattr(module, "write_manifest", spy)
    train(config, ["srflow"], 0)
    record = load_card(folder).training
    assert record.pretrain_steps == 2
    assert record.pretrain_seconds > 0
    assert pd.read_csv(folder / "history.tsv", sep="\t")["step"].tolist() == [2]
    assert all(state_counts)
    assert not list(folder.rglob("state-*"))


def test_processes_wait_for_the_uploads_of_the_model_before(tmp_path, phantoms, held_out, card, monkeypatch):
    """A collective has a deadline of minutes, so a wait without one comes before the first of every model."""
    calls = []

    class Watched(ProcessGroup):
        def wait(self):
            calls.append("wait")

        def all_agree(self, flag):
            calls.append("collective")
            return flag

    class Uploads(Run):
        def file(self, path, folder=None):
            calls.append("upload")

    config = parse_config(
        {
            "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
            "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
        }
    )
    monkeypatch.setattr(LearningData, "load", classmethod(lambda cls, config: learning_data(card, phantoms, held_out)))
    monkeypatch.setattr(module, "model_run", lambda *_: nullcontext(Uploads()))
    monkeypatch.setattr(module, "process_group", lambda _: nullcontext(Watched()))
    train(config, ["mean_image", "voxelwise_linear"], 0)
    model = ["wait", "collective", "wait", "upload", "upload"]
    assert calls == [*model, *model]


def test_a_network_tracks_its_width_and_selected_step(tmp_path, phantoms, held_out, card, monkeypatch):
    """Its width is known once the model is built; its start is validated too, so step 0 may be the best."""
    config = parse_config(
        {
            "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
            "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
            "baselines": {"models": ["unet"], "steps": 1, "training": {"unet": {"width": 6}}},
            "train": {"validate_every": 1, "precision": "float32"},
        }
    )
    parameters, metrics = {}, {}

    class Recorder(Run):
        def parameters(self, values):
            parameters.update(values)

        def metrics(self, values, step=0):
            metrics.update(values)

    monkeypatch.setattr(LearningData, "load", classmethod(lambda cls, config: learning_data(card, phantoms, held_out)))
    monkeypatch.setattr(module, "model_run", lambda *_: nullcontext(Recorder()))
    train(config, ["unet"], 0)
    assert (parameters["width"], parameters["mean"]) == (6, "stacked")
    assert metrics["train/best_step"] in (0, 1)
    assert metrics["validation/best_score_SUVR"] <= metrics["validation/loss_SUVR"]


def test_a_finished_training_is_not_repeated(tmp_path, phantoms, held_out, card, monkeypatch, capsys):
    """Neither trained nor tracked again, unless its folder is gone or its scans have changed."""
    values = {
        "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
        "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
        "baselines": {"models": ["mean_image"]},
    }
    data, tracked = [learning_data(card, phantoms, held_out)], []
    monkeypatch.setattr(LearningData, "load", classmethod(lambda cls, config: data[-1]))
    monkeypatch.setattr(module, "model_run", lambda *arguments: tracked.append(arguments) or nullcontext(Run()))
    config = parse_config(values)
    train(config, ["mean_image"], 0)
    manifest = config.layout.manifest("train/mean_image_seed-0")
    before = manifest.read_bytes()
    manifest.unlink()  # as Snakemake does before it runs a step again
    train(config, ["mean_image"], 0)
    assert manifest.read_bytes() == before
    folder = config.layout.model("mean_image", 0)
    assert f"train mean_image, seed 0: already finished; delete {folder} to train again" in capsys.readouterr().err
    assert len(tracked) == 1
    shutil.rmtree(folder)
    train(config, ["mean_image"], 0)
    train(parse_config({**values, "train": {"learning_rate": 1e-4}}), ["mean_image"], 0)
    assert len(tracked) == 2
    data.append(learning_data(card, phantoms, held_out, "others"))
    train(config, ["mean_image"], 0)
    assert len(tracked) == 3
    assert load_card(folder).name == "mean_image"
