"""ModelCard: typed metadata of a trained model, stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints, model_validator

from dualflow import __version__
from dualflow.baselines import BASELINES
from dualflow.config import PreprocessConfig, StudyConfig
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import CheckpointError
from dualflow.flows.spec import FlowSpec

FLOW = "flow"
MAX_EDGE, MAX_VOXELS = 1024, 1 << 27
"""Largest edge and size of a model grid in voxels; a card that asks for more is damaged or hostile."""
MAX_SIDE_FEATURES, MAX_SOURCES, MAX_REGIONS, MAX_WIDTH = 4096, 16, 10_000, 2048
"""Largest numbers of side features, source channels, regions, and channels of a baseline."""
COMMIT_DIGITS = 12
"""Digits of a commit that are shown."""
Text = Annotated[str, StringConstraints(max_length=200)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Seconds = Annotated[float, Field(ge=0)]


def short_commit(commit: str) -> str:
    """The first digits of a commit, and its `-dirty` if it has one."""
    digits, dash, dirty = commit.partition("-")
    return digits[:COMMIT_DIGITS] + dash + dirty


class Record(BaseModel):
    """Base class of a card and its parts: frozen, without unknown fields and infinite or NaN numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class StudyRecord(Record):
    """The study that a model was trained on."""

    name: Text
    """Name of the study."""
    source: Text
    """Modality of the main source."""
    extra_sources: tuple[Text, ...] = Field(default=(), max_length=MAX_SOURCES - 1)
    """Further source modalities, in the order of the channels."""
    target: Text
    """Modality of the target."""
    side: tuple[str, ...] = ()
    """Side columns."""
    simulated: bool | None = None
    """Whether the people are those of the embedded, simulated cohort; None if unknown."""

    @classmethod
    def of(cls, study: StudyConfig) -> StudyRecord:
        """Return the record of a study's configuration, without its folders."""
        return cls(
            name=study.name,
            source=study.source,
            extra_sources=study.extra_sources,
            target=study.target,
            side=study.side,
            simulated=study.embedded,
        )


class ConstantSpread(Record):
    """Root mean squared errors on the validation pairs: the spread of a model without a distribution."""

    voxel: float = Field(ge=0)
    """Error of voxels, in the target's unit."""
    region: float = Field(ge=0)
    """Error of region means, in the target's unit."""
    regions: int = Field(ge=0, le=MAX_REGIONS)
    """Number of regions."""


class TrainingRecord(Record):
    """Times and results of a training."""

    seconds: Seconds = 0.0
    """Time in optimiser steps."""
    best_step: Count = 0
    """Step of the selected weights; 0 without gradient steps."""
    skipped_steps: Count = 0
    """Steps whose loss or gradient was not finite."""
    precision: str = ""
    """Precision of the convolutions: `float32` or `bfloat16`; empty without gradient steps."""
    mean: dict[str, Any] = Field(default_factory=dict)
    """Results of fitting the mean, such as its ridge."""
    mean_seconds: Seconds = 0.0
    """Time to fit the mean."""
    pretrain_steps: Count = 0
    """Steps of pre-training the source."""
    pretrain_seconds: Seconds = 0.0
    """Time of those steps."""
    initialize_seconds: Seconds = 0.0
    """Time of the first fit of spread and whitening, and of the data-dependent initialisation."""
    calibrate_seconds: Seconds = 0.0
    """Time of the fits after training: whitening, spread map, base, law of regions and calibration."""
    spread: dict[str, float] = Field(default_factory=dict)
    """Facts of the refit of whitening and spread map; empty without such a map."""
    base: dict[str, float] = Field(default_factory=dict)
    """Facts of the closed-form fit of the base; empty without directions of its own."""
    calibration: dict[str, float] = Field(default_factory=dict)
    """Gains of the spread, and the NLL before and after them (nats per voxel), of validation people or, if they are too
    few, of training people by cross-fitting; empty if not calibrated."""
    side_probe: dict[str, float] = Field(default_factory=dict)
    """Share of the variance of side values that a linear probe of each finer level's latents explains."""

    @property
    def total_seconds(self) -> float:
        """Time of the whole training."""
        steps = self.seconds + self.pretrain_seconds
        return steps + self.mean_seconds + self.initialize_seconds + self.calibrate_seconds


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
    name: Text
    """Name of the model in its study."""
    seed: Count
    """Seed of the training."""
    kind: Text
    """`flow`, or a row of BASELINES."""
    spec: Annotated[FlowSpec, BeforeValidator(_spec), PlainSerializer(FlowSpec.to_dict)] | None = None
    """Spec of a flow; None for a baseline."""
    options: dict[Text, Width] = Field(default_factory=dict)
    """Constructor options of a baseline."""
    shape: tuple[int, int, int]
    """Model grid, D, H, W."""
    study: StudyRecord
    """Study that the model was trained on."""
    side: Annotated[SideEncoder, BeforeValidator(_encoder), PlainSerializer(SideEncoder.to_dict)]
    """Encoder of the side columns."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """Preprocessing of the scans."""
    preprocess_revision: Count | None = None
    """Revision of that preprocessing; None in cards of earlier versions."""
    constant_spread: ConstantSpread | None = None
    """Spread of a model without a distribution; None for others and without validation pairs."""
    parameters: Count = 0
    """Number of trained parameters."""
    data_digest: Text = ""
    """Digest of the training and validation scans with their side values."""
    weights_sha256: Text = ""
    """SHA-256 of the weights; set when they are saved."""
    reference_sha256: Text = ""
    """SHA-256 of `reference.json`, which describes the training scans for verdicts; empty without one."""
    training: TrainingRecord = TrainingRecord()
    """Times and results of the training."""
    dualflow: Text = __version__
    """Version of dualflow."""
    commit: Text = ""
    """Git commit of dualflow, with `-dirty` if its code was changed; empty if it did not run from a checkout."""
    torch: Text = ""
    """Version of torch."""
    device: Text = "cpu"
    """Type of the device of the training."""

    @property
    def short_commit(self) -> str:
        """The first digits of `commit`."""
        return short_commit(self.commit)

    @model_validator(mode="after")
    def _known_kind(self) -> ModelCard:
        if self.kind != FLOW and self.kind not in BASELINES:
            raise CheckpointError(f"model kind '{self.kind}' is unknown; choose from: {FLOW}, {', '.join(BASELINES)}")
        if (self.kind == FLOW) != (self.spec is not None):
            given = "without a spec" if self.spec is None else "with a spec"
            raise CheckpointError(f"kind '{self.kind}' {given}; a flow has a spec, and a baseline has none")
        for shape in (self.shape, self.preprocess.shape):
            if not all(1 <= edge <= MAX_EDGE for edge in shape) or prod(shape) > MAX_VOXELS:
                raise CheckpointError(
                    f"shape {shape}; expected edges of 1 to {MAX_EDGE} voxels, and at most {MAX_VOXELS} voxels"
                )
        if (features := len(self.side.names)) > MAX_SIDE_FEATURES:
            raise CheckpointError(f"side has {features} features; expected at most {MAX_SIDE_FEATURES}")
        return self

    @property
    def source_channels(self) -> int:
        """Number of source images; a source also carries the detail of each."""
        return 1 + len(self.study.extra_sources)

    @property
    def label(self) -> str:
        """Name and seed, for display."""
        return f"{self.name} seed {self.seed}"
