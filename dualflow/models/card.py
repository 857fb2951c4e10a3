"""ModelCard: typed metadata of a trained model, stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from dualflow import __version__
from dualflow.baselines import BASELINES
from dualflow.config import PreprocessConfig, StudyConfig
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import CheckpointError
from dualflow.flows.spec import FlowSpec

FLOW = "flow"
MAX_EDGE = 1024
"""Largest edge of a model grid in voxels; a card that asks for more is damaged or hostile."""


class Record(BaseModel):
    """Base class of a card and its parts: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)


class StudyRecord(Record):
    """The study that a model was trained on."""

    name: str
    """Name of the study."""
    source: str
    """Modality of the main source."""
    extra_sources: tuple[str, ...] = ()
    """Further source modalities, in the order of the channels."""
    target: str
    """Modality of the target."""
    side: tuple[str, ...] = ()
    """Side columns."""

    @classmethod
    def of(cls, study: StudyConfig) -> StudyRecord:
        """Return the record of a study's configuration, without its folders."""
        return cls(
            name=study.name,
            source=study.source,
            extra_sources=study.extra_sources,
            target=study.target,
            side=study.side,
        )


class ConstantSpread(Record):
    """Root mean squared errors on the validation pairs: the spread of a model without a distribution."""

    voxel: float = Field(ge=0)
    """Error of voxels, in the target's unit."""
    region: float = Field(ge=0)
    """Error of region means, in the target's unit."""
    regions: int = Field(ge=0)
    """Number of regions."""


class TrainingRecord(Record):
    """Times and results of a training."""

    seconds: float = 0.0
    """Time in optimiser steps."""
    best_step: int = 0
    """Step of the selected weights; 0 without gradient steps."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite."""
    mean: dict[str, Any] = Field(default_factory=dict)
    """Results of fitting the mean, such as its ridge."""
    mean_seconds: float = 0.0
    """Time to fit the mean."""
    pretrain_steps: int = 0
    """Steps of pre-training the source."""
    pretrain_seconds: float = 0.0
    """Time of those steps."""
    initialize_seconds: float = 0.0
    """Time of the data-dependent initialisation."""
    calibrate_seconds: float = 0.0
    """Time of the calibration of the spread."""
    base: dict[str, float] = Field(default_factory=dict)
    """Choices of the closed-form fit of the coarsest level's base; empty without directions of its own."""
    calibration: dict[str, float] = Field(default_factory=dict)
    """Gains of the spread, and the validation NLL before and after them (nats per voxel); empty if not calibrated."""


def _spec(value: Any) -> Any:
    return FlowSpec.from_dict(dict(value)) if isinstance(value, Mapping) else value


def _encoder(value: Any) -> Any:
    return value if isinstance(value, SideEncoder) else SideEncoder.from_dict(value)


class ModelCard(Record):
    """Metadata of a trained model.

    Card and weights together are enough to convert scans.
    """

    format: Literal[1] = 1
    """Version of this layout."""
    name: str
    """Name of the model in its study."""
    seed: int
    """Seed of the training."""
    kind: str
    """`flow`, or a row of BASELINES."""
    spec: Annotated[FlowSpec, BeforeValidator(_spec), PlainSerializer(FlowSpec.to_dict)] | None = None
    """Spec of a flow; None for a baseline."""
    options: dict[str, int] = Field(default_factory=dict)
    """Constructor options of a baseline."""
    shape: tuple[int, int, int]
    """Model grid, D, H, W."""
    study: StudyRecord
    """Study that the model was trained on."""
    side: Annotated[SideEncoder, BeforeValidator(_encoder), PlainSerializer(SideEncoder.to_dict)]
    """Encoder of the side columns."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """Preprocessing of the scans."""
    constant_spread: ConstantSpread | None = None
    """Spread of a model without a distribution; None without validation pairs."""
    parameters: int = 0
    """Number of trained parameters."""
    data_digest: str = ""
    """Digest of the training and validation scans."""
    weights_sha256: str = ""
    """SHA-256 of the weights; set when they are saved."""
    reference_sha256: str = ""
    """SHA-256 of `reference.json`, which describes the training scans for verdicts; empty without one."""
    training: TrainingRecord = TrainingRecord()
    """Times and results of the training."""
    dualflow: str = __version__
    """Version of dualflow."""
    torch: str = ""
    """Version of torch."""
    device: str = "cpu"
    """Type of the device of the training."""

    @model_validator(mode="after")
    def _known_kind(self) -> ModelCard:
        if self.kind != FLOW and self.kind not in BASELINES:
            raise CheckpointError(f"model kind '{self.kind}' is unknown; choose from: {FLOW}, {', '.join(BASELINES)}")
        if (self.kind == FLOW) != (self.spec is not None):
            given = "without a spec" if self.spec is None else "with a spec"
            raise CheckpointError(f"kind '{self.kind}' {given}; a flow has a spec, and a baseline has none")
        if not all(1 <= edge <= MAX_EDGE for edge in self.shape):
            raise CheckpointError(f"shape {self.shape}; expected edges of 1 to {MAX_EDGE} voxels")
        return self

    @property
    def source_channels(self) -> int:
        """Number of source channels."""
        return 1 + len(self.study.extra_sources)

    @property
    def label(self) -> str:
        """Name and seed, for display."""
        return f"{self.name} seed {self.seed}"
