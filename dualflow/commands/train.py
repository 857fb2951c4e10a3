"""Train one model with one seed: a flow or a baseline, by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dualflow import __version__
from dualflow.baselines import BASELINES, width_for
from dualflow.commit import commit_text, digest_of, sha256
from dualflow.config import Config, dump_sections, public_values
from dualflow.data.dataset import PairDataset
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import learning_pairs
from dualflow.errors import ConfigError
from dualflow.evaluation.regions import region_map
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.tracking.metric_names import tracked_name
from dualflow.tracking.tracked_run import Run, tracked
from dualflow.training.checkpoint import forget_states, save_model
from dualflow.training.device import source_and_side
from dualflow.training.distributed import Ranks, joined, launch, launched
from dualflow.training.engine import Watcher, fit
from dualflow.training.fit_mean import person_folds
from dualflow.training.session import History
from dualflow.training.train_flow import mean_folder, parameter_count, source_folder, train_flow

PICTURE_SEED = 0
CARD_STUDY = ("name", "source", "extra_sources", "target", "side")
"""What a model's card says of its study."""


def train(config: Config, name: str, seed: int) -> None:
    """Train model `name` with `seed`, track it, and write its folder.

    Raises:
        ConfigError: the name is neither a flow of the configuration nor a baseline.
    """
    if name not in config.flows and name not in BASELINES:
        raise ConfigError(f"unknown model '{name}'; choose from: {', '.join([*config.flows, *BASELINES])}")
    if config.train.processes > 1 and not launched():
        launch(config.train.processes, sys.argv[1:])
    layout, folder = config.layout, config.layout.model(name, seed)
    pairs, encoder, training, validation = learning_pairs(config)
    data = {key: _input_hash(config, key) for key in [*training.scans, *validation.scans]}
    identity = _identity(config, name, data, (training, validation))
    tags = {"model": name, "seed": str(seed), "training": identity[:16]}
    with joined(config.train.device) as ranks, _tracked(config, f"{name} seed {seed}", tags, ranks) as run:
        run.parameters(public_values(config))
        hashes = [data.get(key, "") for key in pairs["scan"]]
        run.data(pairs[["scan", "split"]].assign(sha256=hashes), "pairs", "training")
        watch = _watcher(config, run, validation, flow=name in config.flows)
        job = Job(config, name, seed, encoder, training, validation, identity, watch, ranks)
        with run.system():
            model, history, facts = _train_flow(job) if name in config.flows else _train_baseline(job)
        if not ranks.first:  # what follows is written by one process
            ranks.wait()
            return
        card = {
            "name": name,
            "seed": seed,
            "dualflow": __version__,
            "torch": torch.__version__,
            "device": ranks.device.type,
            "shape": list(training[0]["source"].shape[1:]),
            "side": encoder.to_dict(),
            "study": {key: config.study.model_dump(mode="json")[key] for key in CARD_STUDY},
            "preprocess": config.preprocess.model_dump(mode="json"),
            "parameters": parameter_count(model),
            "data_digest": digest_of(data),
            "train_seconds": history.seconds,
            "skipped_steps": history.skipped,
            "best_step": history.best_step,
            "constant_spread": _constant_spread(config, model, validation),
            **facts,
        }
        files = save_model(folder, model.state_dict(), card)
        if history.entries:
            table = pd.DataFrame(history.entries).to_csv(sep="\t", index=False)
            commit_text(folder / "history.tsv", table)
            files.append(folder / "history.tsv")
        ranks.wait()  # before what may take long: the others wait for a while only
        for file in files:
            run.file(file, "model")
        run.metrics({"train/seconds": history.seconds, "train/skipped_steps": float(history.skipped)})
    write_manifest(
        layout.manifest(f"train/{name}_seed-{seed}"),
        step="train",
        outputs={file.name: file for file in files if file.name != "history.tsv"},
        inputs=data,
        config={"name": name, "seed": seed, **dump_sections(config.study, config.train, config.baselines)},
    )
    # Only now: killed before the manifest, a training would start from nothing.
    for states in (folder, mean_folder(folder), source_folder(folder)):
        forget_states(states)


def _tracked(config: Config, run_name: str, tags: Mapping[str, str], ranks: Ranks) -> AbstractContextManager[Run]:
    """The tracked run of the first process; the others have none, and what they tell goes nowhere."""
    if not ranks.first:
        return nullcontext(Run())
    return tracked(config.tracking, config.study.name, run_name, tags, config.layout.pending_records)


Trained = tuple[nn.Module, History, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One training: what is trained, on what, who watches, and which process this is."""

    config: Config
    name: str
    seed: int
    encoder: SideEncoder
    training: PairDataset
    validation: PairDataset
    identity: str
    watch: Watcher
    ranks: Ranks

    @property
    def shared(self) -> dict[str, Any]:
        """What every kind of training is given alike."""
        return {
            "label": f"train {self.name}, seed {self.seed}",
            "seed": self.seed,
            "folder": self.config.layout.model(self.name, self.seed),
            "identity": self.identity,
            "watch": self.watch,
            "ranks": self.ranks,
        }


def _train_flow(job: Job) -> Trained:
    result = train_flow(
        job.config.flows[job.name],
        job.training,
        job.validation,
        job.config.train,
        side_features=len(job.encoder.names),
        **job.shared,
    )
    return result.model, result.history, {"kind": "flow", "spec": result.model.spec.to_dict(), **result.facts}


def _train_baseline(job: Job) -> Trained:
    config, count = job.config, len(job.encoder.names)
    channels, *sizes = job.training[0]["source"].shape
    shape, options = tuple(sizes), dict[str, Any]()
    if job.name == "unet":
        spec = preset(config.model.preset, **config.model.options)
        flow = DualFlow(spec, shape=shape, side_features=count, source_channels=channels)
        options["width"] = width_for(parameter_count(flow), count, channels)
    torch.manual_seed(job.seed)
    model = BASELINES[job.name](shape, count, channels, **options)
    means = model.fit(job.training, person_folds(job.training))
    facts = {"kind": job.name, "options": options}
    if not model.trainable:
        return model.eval(), History(), facts
    weights, history = fit(
        model,
        job.training if means is None else job.training.with_means(means),
        job.validation,
        config.train,
        steps=config.baselines.unet_steps,
        learning_rate=config.baselines.unet_learning_rate,
        **job.shared,
    )
    model.load_state_dict(weights)
    return model.eval(), history, facts


@torch.no_grad()
def _constant_spread(config: Config, model: nn.Module, validation: PairDataset) -> dict[str, float] | None:
    """Root mean squared error on the validation pairs, per voxel and per region mean: a spread for point estimates.

    Without validation pairs there is None, for residuals on the training pairs would be too small.
    """
    if not len(validation):
        return None
    regions = region_map(config.preprocess)
    voxel, region = [], []
    for index in range(len(validation)):
        item = validation[index]
        mask = item["mask"][0].numpy()
        estimate = model.point_estimate(*source_and_side(item, model))[0, 0].float().cpu()  # type: ignore[operator]
        error = (estimate - item["target"][0]).numpy()
        voxel.append(np.square(error[mask]).mean())
        region.append(np.nanmean(np.square(regions.means(error, mask))))
    return {
        "voxel": float(np.sqrt(np.mean(voxel))),
        "region": float(np.sqrt(np.mean(region))),
        "regions": len(regions.names),
    }


def _watcher(config: Config, run: Run, validation: PairDataset, *, flow: bool) -> Watcher:
    """Deliver metrics and a picture of the first validation scan at every validation."""
    row = modality(config.study.target)

    def watch(step: int, metrics: Mapping[str, float], model: nn.Module | None) -> None:
        named = {tracked_name(key, row.unit, flow=flow): value for key, value in metrics.items() if key != "step"}
        run.metrics(named, step)
        if model is not None and len(validation):
            run.image(_picture(model, validation, row.window), "validation/axial", step)

    return watch


@torch.no_grad()
def _picture(model: nn.Module, validation: PairDataset, window: tuple[float, float]) -> Any:
    """Middle axial slice of source, real target, estimate and, for a flow, one sample; values in [0, 1]."""
    item = validation[0]
    (source, side), mask = source_and_side(item, model), item["mask"][0]
    images: list[Tensor] = [item["target"][0], model.point_estimate(source, side)[0, 0].float().cpu()]  # type: ignore[operator]
    if isinstance(model, DualFlow):
        generator = torch.Generator().manual_seed(PICTURE_SEED)
        images.append(model.sample(source, side, generator=generator)[0, 0, 0].float().cpu())
    low, high = window
    shown = [item["source"][0], *((image * mask - low) / (high - low) for image in images)]
    row = torch.cat([image[:, :, image.shape[2] // 2].T.flip(0) for image in shown], dim=1)
    return row.clamp(0, 1).numpy()


def _identity(config: Config, name: str, data: Mapping[str, str], splits: Sequence[PairDataset]) -> str:
    """Digest of what a training depends on beside its seed: states of another one are not gone on from."""
    choice = config.flows.get(name, config.model)
    sections = dump_sections(config.train, config.baselines, choice, without=("seeds", "models", "processes", "device"))
    scans = [[(item["scan"], data[item["scan"]], item["side"].tolist()) for item in split.items] for split in splits]
    return digest_of({"version": __version__, "name": name, "scans": scans, **sections})


def _input_hash(config: Config, key: str) -> str:
    return sha256(config.layout.scan_manifest(Scan.parse(key)))
