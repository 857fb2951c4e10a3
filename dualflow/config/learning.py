"""Sections of learning: the flow, its training, what it is compared with, and how it is used and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dualflow.config.section import Section
from dualflow.errors import ConfigError


class ModelConfig(Section):
    """Which flow: a preset, and what is changed in it."""

    preset: str = "dualflow"
    """A row of PRESETS."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the preset to replace, by name: see `dualflow presets`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps of this flow, where it is to have others than `train.steps`."""


class AugmentConfig(Section):
    """Random changes of the training scans, source and target together."""

    probability: float = Field(default=0.0, ge=0, le=1)
    """Share of the scans of a batch that are changed; 0 leaves all as they are."""
    rotation_deg: float = Field(default=3.0, ge=0, lt=90)
    """Largest rotation about each axis."""
    shift_voxels: float = Field(default=0.5, ge=0)
    """Largest shift along each axis, voxels of the model grid."""
    scale: float = Field(default=0.03, ge=0, lt=0.5)
    """Largest relative change of size along each axis."""
    bias: float = Field(default=0.1, ge=0)
    """Largest coefficient of the polynomial whose exponential multiplies the source."""
    gamma: float = Field(default=0.1, ge=0)
    """The source's intensities are raised to a power between 1 / (1 + gamma) and 1 + gamma."""


class TrainConfig(Section):
    """How a flow is trained."""

    seeds: tuple[int, ...] = (0,)
    """One training per seed."""
    steps: int = Field(default=600, ge=1)
    """Optimiser steps of the flow."""
    mean_steps: int = Field(default=300, ge=1)
    """Optimiser steps of the mean, where the preset has a network for it."""
    choose_mean: bool = False
    """Fit the closed-form mean and the network, and keep whichever validates better."""
    batch_size: int = Field(default=2, ge=1)
    """Scans per step, of all processes together."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of AdamW, after warm-up and before the cosine."""
    mean_learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of the network mean."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises from zero; 20 steps at the least."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's decoupled decay."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running mean of the weights, which validation and sampling use."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the convolutions; log-determinants and solves stay float32 or wider."""
    memory: Literal["stored", "checkpoint", "reversible"] = "stored"
    """What is kept for the backward pass: every activation; one per step, which is run again; or one per level, from
    which the others are recovered by the flow's inverse, so that memory does not grow with depth."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between validations, sample pictures and checkpoints."""
    patience: int | None = Field(default=10, ge=1)
    """Validations in a row without a better one after which training ends; null trains all steps."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of the training scans."""
    max_skipped: int = Field(default=10, ge=0)
    """Non-finite steps in a row after which training stops with an error."""
    max_round_trip: float = Field(default=0.01, gt=0)
    """Largest difference between a validation scan and the decode of its encoding, in the target's unit (SUVR) and in
    float32, beyond which training stops with an error."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models are trained; auto takes a GPU where there is one."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each process of a training, the same for the flow and the networks it is compared with."""
    processes: int = Field(default=1, ge=1)
    """Processes that share each batch of a training (DistributedDataParallel), on a GPU each if there are any;
    `batch_size` is a multiple of it."""

    @model_validator(mode="after")
    def _shared_evenly(self) -> Self:
        if self.batch_size % self.processes:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be shared by {self.processes} processes; make it a multiple"
            )
        return self


class BaselineConfig(Section):
    """What the flow is compared with."""

    models: tuple[Literal["mean_image", "voxelwise_linear", "local_linear", "unet"], ...] = (
        "mean_image",
        "voxelwise_linear",
        "local_linear",
        "unet",
    )
    """Rows of BASELINES."""
    unet_steps: int = Field(default=600, ge=1)
    """Optimiser steps of the U-Net, set so that its training takes as long as the flow's."""
    unet_learning_rate: float = Field(default=4e-3, gt=0)
    """Peak rate of the U-Net's AdamW."""


class ConvertConfig(Section):
    """How synthetic volumes are drawn."""

    samples: int = Field(default=16, ge=2)
    """Samples per scan, from which mean and standard deviation are taken."""
    keep_samples: int = Field(default=2, ge=0)
    """How many single samples are written beside them."""
    temperature: float = Field(default=1.0, ge=0)
    """Scale of the latent noise."""
    latents: Literal["none", "global", "local", "spatial", "interpolate"] | None = None
    """What is done to drawn latents: SRFlow's normalisation over a set, or PU-Flow's interpolation between neighbours;
    left out, what the flow's preset says."""
    seed: int = Field(default=0, ge=0)
    """Seed of the samples."""


class EvaluateConfig(Section):
    """How models are compared."""

    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the subjects for confidence intervals."""
    samples: int = Field(default=32, ge=4)
    """Samples per subject for coverage and CRPS."""
    background_draws: int = Field(default=4, ge=1)
    """Draws of the background over which the density inside the mask is bounded."""
    stress: int = Field(default=0, ge=0)
    """Extra samples of each flow, over temperatures 0 to 1 and over own and others' sources, to count values that are
    not finite; 0 draws none."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap and the samples."""


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str = "sqlite:///results/mlflow.db"
    """MLflow tracking URI: a local SQLite file or a server."""
    artifacts: Path = Path("results/mlartifacts")
    """Folder of artifacts for a local store."""
