"""Checks of `gpu_check.py`: each compares a result on a device with its reference, and returns the numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, get_args

import numpy as np
import torch
from memory_use import peak_bytes, reset_peak
from step import LAYOUTS, bare_pass, convolutions
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import SIDE, SMALL, phantom

from dualflow.cohort import participants, write_dataset, write_subject
from dualflow.config import Config, ConvertConfig, PreprocessConfig, parse_config
from dualflow.data.dataset import PairDataset
from dualflow.flows import model as flow_module
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.memory import Memory, set_memory
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.inference.batch import Compute
from dualflow.inference.conversion import convert_inputs
from dualflow.inference.predict import Prediction, load_predictor
from dualflow.models.card import ModelCard
from dualflow.models.store import save_model
from dualflow.training.context import TrainingContext
from dualflow.training.device import autocast, select_device, synchronize
from dualflow.training.distributed import ProcessGroup, launch_command
from dualflow.training.history import TrainingResult
from dualflow.training.memory_footprint import footprint
from dualflow.training.optimiser import Optimiser
from dualflow.training.step_time import SCHEDULE, random_training, timed_step
from dualflow.training.train_flow import train_flow

MIB = 1 << 20
SHARED_TRAINING = Path(__file__).parents[1] / "support" / "shared_training.py"
MODES: tuple[Memory, ...] = get_args(Memory)


@dataclass(frozen=True)
class Scale:
    """Sizes and bounds of a run.

    Attributes:
        device: `cuda` or `cpu`.
        grids: model grids; all rows but memory and step use the first.
        options: changes to the default flow.
        scans: training phantoms.
        steps: optimiser steps of a training.
        timed: steps that are timed.
        step_bounds: largest ratio of a step to its bare convolutions, by voxel size in mm.
        memory_bounds: smallest and largest ratio of measured to forecast memory.
    """

    device: str
    grids: tuple[PreprocessConfig, ...]
    options: dict[str, Any] = field(default_factory=dict)
    scans: int = 12
    steps: int = 100
    timed: int = 10
    step_bounds: dict[float, float] = field(default_factory=dict)
    memory_bounds: tuple[float, float] = (0.0, inf)

    @property
    def grid(self) -> PreprocessConfig:
        """The first grid."""
        return self.grids[0]

    def config(self, grid: PreprocessConfig | None = None, **train: Any) -> Config:
        """Return a configuration of the default flow on a grid."""
        return parse_config(
            {
                "study": {"name": "gpu-check", "side": ["age"]},
                "preprocess": (grid or self.grid).model_dump(),
                "model": {"preset": "dualflow", "options": self.options},
                "train": {"device": self.device, "steps": self.steps, "validate_every": self.steps // 4, **train},
            }
        )


SMALL_GRID = PreprocessConfig(spacing_mm=8.0, shape=(24, 32, 24), bias_field=False)
TINY_GRID = PreprocessConfig(spacing_mm=12.0, shape=(16, 16, 16), bias_field=False)
SCALES = {
    "cuda": Scale(
        "cuda",
        (PreprocessConfig(spacing_mm=4.0, shape=(48, 56, 48)), PreprocessConfig(spacing_mm=2.0, shape=(96, 112, 96))),
        step_bounds={4.0: 1.5, 2.0: 1.2},
        memory_bounds=(0.75, 1.1),
    ),
    "cpu": Scale("cpu", (TINY_GRID,), SMALL | {"mean": "local_linear"}, scans=4, steps=12, timed=2),
}
"""The whole check on a GPU, and a reduced one on the CPU, whose times and memory have no bounds."""


@dataclass(frozen=True)
class Outcome:
    """Result of a check.

    Attributes:
        passed: whether all numbers are within their bounds.
        numbers: the numbers, for the table.
    """

    passed: bool
    numbers: str


def check_training(scale: Scale) -> Outcome:
    """Train the default flow on phantoms: the validation improves, and the flow stays invertible."""
    trained, config = _train(scale), scale.config()
    first, last = trained.history.entries[0], trained.history.entries[-1]
    nll, round_trip = (first["validation/nll"], last["validation/nll"]), last["validation/round_trip"]
    seconds = trained.history.seconds / scale.steps
    return Outcome(
        nll[1] < nll[0] and not trained.record.skipped_steps and round_trip < config.train.max_round_trip,
        f"validation NLL {nll[0]:.3f} to {nll[1]:.3f} nats/voxel in {scale.steps} steps of {seconds:.3f} s, round trip "
        f"{round_trip:.1e} SUVR (below {config.train.max_round_trip:g})",
    )


def check_gradients(scale: Scale) -> Outcome:
    """Compare the gradients of the memory modes with stored activations, in float64."""
    small = replace(scale, grids=(SMALL_GRID,), options={**SMALL, "steps": [4, 4, 4]})
    objective, batch = _moved(small.config(precision="float32"))
    objective.double().train()
    batch = Batch(*(value.double() if value is not None and value.is_floating_point() else value for value in batch))
    gradients = {mode: _gradient(objective, batch, mode) for mode in MODES}
    errors = {
        mode: float((gradient - gradients["stored"]).norm() / gradients["stored"].norm())
        for mode, gradient in gradients.items()
        if mode != "stored"
    }
    return Outcome(
        max(errors.values()) < 1e-8,
        f"relative difference {', '.join(f'{mode} {error:.1e}' for mode, error in errors.items())} (below 1e-08)",
    )


def check_precision(scale: Scale) -> Outcome:
    """Train in bfloat16 and in float32: the validation after equal steps is equal."""
    trainings = {precision: _train(scale, precision=precision) for precision in ("bfloat16", "float32")}
    nll = {name: trained.history.entries[-1]["validation/nll"] for name, trained in trainings.items()}
    times = [f"{name} {trained.history.seconds / scale.steps:.3f} s/step" for name, trained in trainings.items()]
    difference = abs(nll["bfloat16"] - nll["float32"])
    return Outcome(
        difference < 0.05, f"validation NLL differs by {difference:.4f} nats/voxel (below 0.05); {', '.join(times)}"
    )


def check_distributed(scale: Scale) -> Outcome:
    """Train under torchrun with DistributedDataParallel on every GPU: the losses are those of a plain process."""
    processes, steps = (torch.cuda.device_count(), 20) if scale.device == "cuda" else (2, 5)
    histories = []
    with TemporaryDirectory(prefix="dualflow-") as folder:
        for name in ("single", "group"):
            out = Path(folder, name)
            out.mkdir()
            options = [str(out), str(steps), "--device", scale.device, "--batch", str(max(2, processes))]
            program = [str(SHARED_TRAINING), *options]
            command = [sys.executable, *program] if name == "single" else launch_command(processes, program)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} training: {done.stderr.strip().splitlines()[-1:]}")
            histories.append(json.loads((out / "history.json").read_text()))
    errors = [abs(entry["loss"] / other["loss"] - 1) for entry, other in zip(*histories, strict=True)]
    backend = "NCCL" if scale.device == "cuda" else "gloo"
    return Outcome(
        max(errors) < 1e-3,
        f"{processes} process(es) over {backend}, {steps} steps: losses within {max(errors):.1e} of those of one "
        "process without DDP (below 1e-03)",
    )


def check_prediction(scale: Scale) -> Outcome:
    """Compare a prediction with that of the CPU, for two chunk sizes; memory does not grow with the samples."""
    config, few, many = scale.config(precision="float32"), 8, 32
    item = phantom(1, scale.grid.shape)
    with TemporaryDirectory(prefix="dualflow-") as folder:
        _save(config, Path(folder))

        def predict(device: str, samples: int = few) -> Prediction:
            return load_predictor(folder, select_device(device)).predict(
                item["source"], item["side"], item["mask"], samples=samples, temperature=1.0, seed=0, keep=few
            )

        reference, prediction = predict("cpu"), predict(scale.device)
        peaks = [_peak_memory(lambda count=count: predict(scale.device, count)) for count in (few, many)]
        flow_module.SAMPLES_AT_ONCE = 3
        chunked = predict(scale.device)
    assert reference.samples is not None
    differences = [
        max(
            float(np.abs(first - second).max())
            for first, second in zip(_volumes(reference), _volumes(other), strict=True)
        )
        for other in (prediction, chunked)
    ]
    return Outcome(
        max(differences) < config.train.max_round_trip and peaks[1] <= 1.02 * peaks[0],
        f"{few} samples differ from the CPU's by {differences[0]:.1e} SUVR, in chunks of 3 by {differences[1]:.1e} "
        f"(below {config.train.max_round_trip:g}); {_seconds(prediction)} s/sample (CPU {_seconds(reference)}); "
        f"memory {peaks[0] / MIB:.0f} MiB, with {many} samples {peaks[1] / MIB:.0f} MiB",
    )


def check_conversion(scale: Scale) -> Outcome:
    """Convert a simulated raw scan in a worker process, as `dualflow convert --device` does."""
    config, people = scale.config(precision="float32"), participants(1, 0)
    with TemporaryDirectory(prefix="dualflow-") as folder:
        root = Path(folder)
        write_subject(root / "study", people[0])
        write_dataset(root / "study", people)
        _save(config, root / "model")
        options = ConvertConfig(samples=4, keep_samples=1)
        convert_inputs([root / "study"], root / "model", root / "out", options, compute=Compute(device=scale.device))
        volumes = sorted(path.name.split("desc-")[1].split("_")[0] for path in root.glob("out/sub-*/pet/*.nii.gz"))
    return Outcome(volumes == ["synth", "synth01", "synthmean", "synthstd"], f"volumes written: {', '.join(volumes)}")


def check_memory(scale: Scale) -> Outcome:
    """Compare the forecast memory of a training with the measured one, in each memory mode."""
    ratios, parts = [], []
    for grid in scale.grids:
        for mode in MODES:
            config = scale.config(grid, memory=mode)
            sizes = footprint(config, scale.scans)
            if scale.device == "cuda":
                forecast, measured = sizes.on_device, _peak_memory(lambda config=config: _few_steps(config))
            else:
                forecast, measured = sizes.step, _few_steps(config)
            ratios.append(measured / forecast)
            parts.append(
                f"{grid.spacing_mm:g} mm {mode} {measured / MIB:.0f} of {forecast / MIB:.0f} MiB ({ratios[-1]:.2f})"
            )
    low, high = scale.memory_bounds
    return Outcome(all(low <= ratio <= high for ratio in ratios), "; ".join(parts) + _bounds(low, high))


def check_step(scale: Scale) -> Outcome:
    """Compare an optimiser step with its bare convolutions in their best memory layout."""
    parts, passed = [], True
    for grid in scale.grids:
        config = scale.config(grid)
        objective, batch = random_training(config, config.model)
        optimiser = Optimiser(objective, config.train, SCHEDULE, config.train.learning_rate)
        device = select_device(scale.device)

        def forward(config=config, objective=objective, batch=batch, device=device) -> None:
            with autocast(config.train.precision, device):
                objective.train()(batch)

        calls = convolutions(objective, forward)
        steps = [timed_step(config, "step", objective, optimiser, batch) for _ in range(2 + scale.timed)]
        bare = {}
        for name, layout in LAYOUTS.items():
            passes = [bare_pass(call, layout, device) for call in calls]
            bare[name] = min(_time_all(passes, device) for _ in range(2 + scale.timed))
        best, seconds = min(bare, key=lambda name: bare[name]), min(steps[2:])
        ratio, bound = seconds / bare[best], scale.step_bounds.get(grid.spacing_mm, inf)
        passed &= ratio <= bound
        parts.append(
            f"{grid.spacing_mm:g} mm: {1e3 * seconds:.1f} ms, bare convolutions {1e3 * bare[best]:.1f} ms ({best}), "
            f"ratio {ratio:.2f}{_bounds(0, bound)}"
        )
    return Outcome(passed, "; ".join(parts))


CHECKS: dict[str, tuple[str, Callable[[Scale], Outcome]]] = {
    "training": ("Training on phantoms", check_training),
    "gradients": ("Gradients of checkpoint and reversible memory", check_gradients),
    "precision": ("bfloat16 against float32", check_precision),
    "distributed": ("DistributedDataParallel", check_distributed),
    "prediction": ("Prediction against the CPU's", check_prediction),
    "conversion": ("Conversion of a raw scan", check_conversion),
    "memory": ("Measured against forecast memory", check_memory),
    "step": ("Step over bare convolutions", check_step),
}
"""Name of a row -> its heading in the table and its check."""


def _train(scale: Scale, **train: Any) -> TrainingResult[DualFlow]:
    config, shape = scale.config(**train), scale.grid.shape
    pairs = [
        PairDataset([phantom(index, shape) for index in range(*ends)]) for ends in ((1, scale.scans + 1), (90, 92))
    ]
    with TemporaryDirectory(prefix="dualflow-") as folder:
        group = ProcessGroup(device=select_device(scale.device))
        context = TrainingContext(config.train, Path(folder), seed=0, label="check", group=group)
        trained = train_flow(config.model, *pairs, context)
    if not all(isfinite(value) for entry in trained.history.entries for value in entry.values()):
        raise RuntimeError("a metric of the training is not finite")
    return trained


def _moved(config: Config) -> tuple[FlowObjective, Batch]:
    """An initialised flow whose zero layers are moved off zero, so that all of it takes part, and a batch."""
    objective, batch = random_training(config, config.model)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape).to(parameter.device))
    return objective, batch


def _gradient(objective: FlowObjective, batch: Batch, mode: Memory) -> Tensor:
    """All gradients of one pass as a vector."""
    set_memory(objective, mode)
    torch.manual_seed(0)
    objective.zero_grad()
    objective(batch)["loss"].backward()
    return torch.cat([parameter.grad.flatten() for parameter in objective.parameters() if parameter.grad is not None])


def _save(config: Config, folder: Path) -> None:
    """Write the model folder of a flow that is not trained."""
    flow = _moved(config)[0].flow
    card = ModelCard(
        name="dualflow", seed=0, kind="flow", shape=flow.shape, side=SIDE, spec=flow.spec, preprocess=config.preprocess,
        study={"name": "gpu-check", "source": "T1w", "target": "FDG", "side": ["age"]},
    )  # fmt: skip
    save_model(folder, flow, card)


def _volumes(prediction: Prediction) -> list[Any]:
    return [prediction.mean, prediction.std, prediction.samples, prediction.sample_mean]


def _seconds(prediction: Prediction) -> str:
    return f"{prediction.sample_seconds:.3f}"


def _peak_memory(action: Callable[[], object]) -> int:
    """Peak of the GPU memory that tensors take while an action runs, in bytes; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated()


def _few_steps(config: Config) -> float:
    """Take some steps of a training; return the peak that a step adds to the process, in bytes."""
    objective, batch = random_training(config, config.model)
    optimiser = Optimiser(objective, config.train, SCHEDULE, config.train.learning_rate)
    best = [value.clone() for value in objective.state_dict().values()]  # a training keeps its best weights
    objective.train()
    timed_step(config, "step", objective, optimiser, batch)
    before = reset_peak()
    timed_step(config, "step", objective, optimiser, batch)
    del best
    return max(peak_bytes() - before, 0.0)


def _time_all(passes: list[Callable[[], object]], device: torch.device) -> float:
    synchronize(device)
    start = perf_counter()
    for run in passes:
        run()
    synchronize(device)
    return perf_counter() - start


def _bounds(low: float, high: float) -> str:
    if high == inf:
        return ""
    return f" (at most {high:g})" if not low else f" (ratios {low:g} to {high:g})"
