"""Sections of the models: flow, training, baselines, conversion, evaluation and tracking."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dualflow.config.section import ONCE, Section, UserPath, expected
from dualflow.config.tracking_uri import usable_uri
from dualflow.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
"""Where a model is trained and applied; `auto` takes a GPU if there is one."""


def _is_exponential(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) is not None


class ModelConfig(Section):
    """A flow: a preset and changes to it."""

    preset: str = "dualflow"
    """A row of PRESETS."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the preset to replace, by name; `dualflow presets NAME` lists them."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps of this flow; null for `train.steps`."""

    @field_validator("options", mode="before")
    @classmethod
    def _numbers(cls, options: object) -> object:
        """Read `1e-5` as a number, as JSON writes it; YAML 1.1 takes it for text, because it has no point."""
        if not isinstance(options, dict):
            return options
        return {name: float(value) if _is_exponential(value) else value for name, value in options.items()}


class AugmentConfig(Section):
    """Random augmentation of the training scans, source and target together."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability with which left and right of a scan are exchanged."""
    translate: int = Field(default=1, ge=0)
    """Largest translation along each axis, in whole voxels of the model grid; the brain stays on the grid."""
    probability: float = Field(default=0.0, ge=0, le=1)
    """Probability with which a scan is moved, and its intensities are changed, as below."""
    rotation_deg: float = Field(default=3.0, ge=0, lt=90)
    """Largest rotation about each axis."""
    shift_voxels: float = Field(default=0.5, ge=0)
    """Largest shift along each axis, in voxels of the model grid, with interpolation."""
    scale: float = Field(default=0.03, ge=0, lt=0.5)
    """Largest relative scaling along each axis."""
    bias: float = Field(default=0.1, ge=0)
    """Largest coefficient of the polynomial whose exponential multiplies the source."""
    gamma: float = Field(default=0.1, ge=0)
    """Source intensities are raised to a power between 1 / (1 + gamma) and 1 + gamma."""

    @model_validator(mode="after")
    def _strengths_have_an_effect(self) -> Self:
        fields = type(self).model_fields
        for name in ("rotation_deg", "shift_voxels", "scale", "bias", "gamma"):
            value = getattr(self, name)
            if not self.probability and value != fields[name].default:
                raise ConfigError(
                    f"augment.{name} = {value:g} has no effect while augment.probability is 0; set it too"
                )
        return self


class TrainConfig(Section):
    """Training of flows and networks."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], ONCE] = Field(default=(0,), min_length=1)
    """Seeds; each model is trained once per seed. Scores are means over them; the first converts, imputes and edits."""
    steps: int = Field(default=600, ge=1)
    """Optimiser steps of the flow."""
    batch_size: int = Field(default=2, ge=1)
    """Scans per step, over all processes."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW, between warm-up and cosine decay."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero; at least 20 steps."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decoupled weight decay of AdamW."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm; larger gradients are scaled down."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, which validation and sampling use."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the convolutions; log-determinants and linear solves use float32 or float64. `auto` takes bfloat16
    on GPUs with it and on processors with AVX-512; others emulate it, many times as slow as float32."""
    memory: Literal["stored", "checkpoint", "reversible"] = "stored"
    """Activations kept for the backward pass. `stored` keeps all. `checkpoint` keeps one per flow step and recomputes
    the rest. `reversible` keeps one per level and recovers the rest by the flow's inverse, so memory does not grow
    with depth, except with the flow option `context: step`, whose maps of the source are kept for each step."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between validations, sample images and checkpoints."""
    patience: int | None = Field(default=10, ge=1)
    """Early stopping: validations without improvement after which training ends; null trains all steps."""
    augment: AugmentConfig = AugmentConfig()
    """Random augmentation of the training scans."""
    max_skipped: int = Field(default=10, ge=0)
    """Non-finite steps in a row that training skips; one more stops it with an error."""
    max_round_trip: float = Field(default=0.01, gt=0)
    """Largest round-trip error (encode, then decode) of a validation scan, in the target's unit and float32, beyond
    which training stops with an error."""
    device: Device = "auto"
    """Device of the training, and of conversion and evaluation after it; `auto` takes a GPU if there is one."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each training process, for flows and baselines alike."""
    processes: int = Field(default=1, ge=1)
    """Processes that share each batch (DistributedDataParallel), with one GPU each if there are any; `batch_size` is a
    multiple of it."""

    @model_validator(mode="after")
    def _shared_evenly(self) -> Self:
        if self.batch_size % self.processes:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be shared by {self.processes} processes; choose a multiple"
            )
        return self


BaselineName = Literal[
    "mean_image",
    "voxelwise_linear",
    "local_linear",
    "local_linear_spread",
    "local_linear_person_scale",
    "local_linear_mixture",
    "stacked",
    "stacked_mixture",
    "stacked_source_scale",
    "unet",
    "unet_half",
    "unet_heteroscedastic",
    "pix2pix",
    "cvae",
    "rectified_flow",
    "latent_diffusion",
]
"""The rows of BASELINES."""
SEEDED = ("unet", "unet_half", "unet_heteroscedastic", "pix2pix", "cvae", "rectified_flow", "latent_diffusion")
"""Baselines trained by gradient steps, and therefore with every seed."""


class BaselineTraining(Section):
    """Training of one baseline with gradient steps."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps, of all stages together; null for `baselines.steps`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null for the default rate of the model."""
    width: int | None = Field(default=None, ge=6, le=128)
    """Channels at half resolution; null for about as many parameters as the main flow has."""


class BaselineConfig(Section):
    """Models that the flows are compared with."""

    models: Annotated[tuple[BaselineName, ...], ONCE] = ("mean_image", "local_linear", "stacked_mixture", "unet")
    """Baselines to train."""
    steps: int = Field(default=600, ge=1)
    """Optimiser steps of each baseline with gradient steps; as many as those of the flow by default."""
    training: dict[BaselineName, BaselineTraining] = Field(default_factory=dict)
    """Settings of single baselines by name: `pix2pix: {steps: 300, learning_rate: 0.001, width: 16}`."""

    @model_validator(mode="after")
    def _have_gradient_steps(self) -> Self:
        for name in self.training:
            if name not in SEEDED:
                raise ConfigError(f"training: '{name}' is fitted in closed form; choose from: {', '.join(SEEDED)}")
        return self

    def of(self, name: str) -> BaselineTraining:
        """Return the settings of one baseline, with its number of steps."""
        chosen = {str(key): value for key, value in self.training.items()}.get(name, BaselineTraining())
        return chosen.model_copy(update={"steps": chosen.steps or self.steps})


class ConvertConfig(Section):
    """Sampling of synthetic volumes."""

    samples: int = Field(default=32, ge=2)
    """Samples per scan, for mean, standard deviation and intervals."""
    quantiles: bool = False
    """Whether maps of the 5, 50 and 95 percentiles of the samples are written."""
    keep_samples: int = Field(default=2, ge=0)
    """Number of samples written per scan."""
    temperature: float = Field(default=1.0, ge=0)
    """Standard deviation of the latents, relative to the prior's."""
    seed: int = Field(default=0, ge=0)
    """Seed of the samples."""

    @model_validator(mode="after")
    def _kept_of_those_drawn(self) -> Self:
        if self.keep_samples > self.samples:
            raise ConfigError(f"keep_samples {self.keep_samples} is more than samples {self.samples}; draw as many")
        return self


class EvaluateConfig(Section):
    """Evaluation on the test scans."""

    bootstrap: int = Field(default=2000, ge=100)
    """Bootstrap resamples of the subjects for confidence intervals."""
    samples: int = Field(default=96, ge=4)
    """Samples per subject for coverage, CRPS and joint scores. With 24 the differences between good models drown in
    Monte-Carlo error."""
    background_draws: int = Field(default=2, ge=1)
    """Draws of the background for the density inside the mask."""
    background_steps: int = Field(default=32, ge=2)
    """Annealing steps of each of these draws. Twice as many nearly halve the slack of the bits (reported beside them)
    and double their time."""
    closed_form_voxels: int = Field(default=12000, ge=0)
    """Largest number of voxels of a brain mask for which the exact density of a closed form is computed. If a test scan
    has more, no scan gets it. Time grows with the third power of the number and memory with its square: 10,000 voxels
    (6 mm) take 10 s and 3 GB, 30,000 (4 mm) 27 times as long and 9 times as much."""
    classify: str | None = None
    """A categorical column of `study.labels` to predict from region means of the held-out people: of the real target,
    the source, and the synthetic target; null for none."""
    stress: int = Field(default=0, ge=0)
    """Stress test: samples of each flow at temperatures 0 to 1 and for swapped sources, in which non-finite values are
    counted; 0 for none."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap and the samples."""


class TrackingConfig(Section):
    """Experiment tracking by MLflow."""

    uri: str = "sqlite:///results/mlflow.db"
    """MLflow tracking URI: a local SQLite file, a server, or a PostgreSQL database."""
    artifacts: UserPath = Path("results/mlartifacts")
    """Folder of artifacts of a file or database; a server has its own."""
    group: Annotated[
        str,
        Field(pattern=r"^[\w .,-]+$"),
        expected("text of letters, digits, spaces, full stops, commas, _ and - only"),
    ] = "workflow"
    """Name of the run under which the runs of the study are nested."""

    @field_validator("uri")
    @classmethod
    def _can_be_opened(cls, uri: str) -> str:
        return usable_uri(uri)
