"""The one configuration: a YAML file checked into frozen pydantic models; unknown keys are refused.

Each rule of the workflow takes only its own section, so a changed value reruns only what depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualflow.commit import commit_json, digest_of
from dualflow.errors import ConfigError
from dualflow.layout import STUDY_NAME, Layout
from dualflow.modalities import modality

SEEDED = ("unet",)
"""Baselines that are trained by gradient steps, and so with every seed."""


class Section(BaseModel):
    """Base of all sections: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StudyConfig(Section):
    """What is learnt from what, and where the files are."""

    name: str = Field(pattern=STUDY_NAME.pattern)
    """Short name; results go to `<results>/<name>` and MLflow runs to an experiment of this name."""
    bids: Path | None = None
    """The BIDS dataset. Left out, the embedded cohort of section `cohort` is made and used."""
    source: str = "T1w"
    """Modality everyone has: a row of MODALITIES."""
    target: str = "FDG"
    """Modality to learn: a row of MODALITIES."""
    side: tuple[str, ...] = ()
    """Columns of participants.tsv given to the model; missing values (`n/a`) are supported inputs."""
    results: Path = Path("results")
    """Folder that holds one folder per study."""

    @model_validator(mode="after")
    def _known_modalities(self) -> Self:
        modality(self.source), modality(self.target)
        return self


class CohortConfig(Section):
    """The embedded cohort: template anatomy, regional uptake, known truth."""

    subjects: int = Field(default=40, ge=3)
    """How many people."""
    seed: int = Field(default=0, ge=0)
    """Same seed, same bytes."""


class SplitConfig(Section):
    """Who is used for what; a person is never split."""

    validation: float = Field(default=0.15, ge=0, lt=1)
    """Share of the people used to choose between models and to stop."""
    test: float = Field(default=0.25, ge=0, lt=1)
    """Share of the people that nothing is chosen on."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""
    test_subjects: tuple[str, ...] = ()
    """People held out by name (labels without `sub-`); replaces the drawn test set."""
    validation_subjects: tuple[str, ...] = ()
    """People used for validation by name; replaces the drawn validation set."""


class PreprocessConfig(Section):
    """From raw scans to the model grid."""

    spacing_mm: float = Field(default=4.0, gt=0)
    """Voxel edge of the model grid, which is aligned with the template."""
    shape: tuple[int, int, int] = (48, 56, 48)
    """Size of the model grid in voxels, centred on the template's brain."""
    bias_field: bool = True
    """Correct the source's bias field (N4)."""
    reference_region: Literal["brain"] = "brain"
    """Region whose mean uptake is 1 SUVR."""
    shards: int = Field(default=2, ge=1)
    """How many jobs share the scans; each job takes one core."""


class ModelConfig(Section):
    """Which flow: a preset, and what is changed in it."""

    preset: str = "dualflow"
    """A row of PRESETS."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the preset to replace, by name: see `dualflow presets`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps of this flow, where it is to have others than `train.steps`."""


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
    """Scans per step; on a CPU at least 2, below that float32 convolutions lose their fast path."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of AdamW, after warm-up and before the cosine."""
    mean_learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of the network mean."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises from zero."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's decoupled decay."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running mean of the weights, which validation and sampling use."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the convolutions; log-determinants and solves stay float32 or wider."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between validations, sample pictures and checkpoints."""
    max_skipped: int = Field(default=10, ge=0)
    """Non-finite steps in a row after which training stops with an error."""
    max_round_trip: float = Field(default=0.01, gt=0)
    """Largest difference between a validation scan and the decode of its encoding, in the target's unit (SUVR) and in
    float32, beyond which training stops with an error."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one training, the same for the flow and the networks it is compared with."""


class BaselineConfig(Section):
    """What the flow is compared with."""

    models: tuple[str, ...] = ("mean_image", "voxelwise_linear", "local_linear", "unet")
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


class Config(Section):
    """The whole configuration."""

    study: StudyConfig
    """What is learnt from what."""
    cohort: CohortConfig = CohortConfig()
    """The embedded cohort."""
    split: SplitConfig = SplitConfig()
    """Who is used for what."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """From raw scans to the model grid."""
    model: ModelConfig = ModelConfig()
    """Which flow."""
    extra_models: dict[str, ModelConfig] = Field(default_factory=dict)
    """More flows to train beside `model`, by name."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    baselines: BaselineConfig = BaselineConfig()
    """What it is compared with."""
    convert: ConvertConfig = ConvertConfig()
    """How synthetic volumes are drawn."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How models are compared."""
    tracking: TrackingConfig = TrackingConfig()
    """Where runs are recorded."""

    @property
    def layout(self) -> Layout:
        """Every path of this study."""
        return Layout(self.study.results / self.study.name)

    @property
    def bids(self) -> Path:
        """The dataset in use: the study's own, or the embedded cohort."""
        return self.study.bids or self.layout.bids

    @property
    def trainings(self) -> list[tuple[str, int]]:
        """Every model with every seed it is trained with; a closed-form baseline has no seed but the first."""
        seeds = self.train.seeds
        flows = [(name, seed) for name in self.flows for seed in seeds]
        rivals = [(name, s) for name in self.baselines.models for s in (seeds if name in SEEDED else seeds[:1])]
        return [*flows, *rivals]

    @property
    def flows(self) -> dict[str, ModelConfig]:
        """All flows to train, by name: the main one first."""
        return {self.model.preset: self.model, **self.extra_models}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, check everything.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not accepted; the message names the key,
            what was given, and what was expected.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())}); mend the line it names") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: holds {type(raw).__name__}, expected sections such as 'study:'; see configs/study.yaml"
        )
    return parse_config(_override(raw, overrides), str(path))


def parse_config(raw: Mapping[str, Any], name: str = "configuration") -> Config:
    """Check a mapping that is already read, such as Snakemake's `config`.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(_explain(entry) for entry in error.errors())) from None


def write_resolved(config: Config) -> Path:
    """Write every value of the configuration, defaults included, beside the results; return the file.

    Its name is its content's digest: a changed configuration is another file, so that a run at work keeps its own.
    """
    values = config.model_dump(mode="json")
    path = config.layout.resolved_config(digest_of(values)[:12])
    if not path.is_file():
        commit_json(path, values)
    return path


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, found, value = override.partition("=")
        if not found:
            raise ConfigError(f"override '{override}' is not of the form section.key=value")
        *sections, last = key.split(".")
        node = raw
        for section in sections:
            if node.get(section) is None:  # left out, or left empty
                node[section] = {}
            node = node[section]
            if not isinstance(node, dict):
                raise ConfigError(f"override '{override}': '{section}' is a value, not a section")
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"override '{override}': '{value}' is not a YAML value; mend or quote it") from None
    return raw


def _explain(entry: Any) -> str:
    """One readable clause of a pydantic error."""
    where = ".".join(str(part) for part in entry["loc"])
    if entry["type"] != "extra_forbidden":
        return f"{where} = {entry['input']!r}: {entry['msg'].removeprefix('Value error, ')}"
    known = _fields_at(entry["loc"][:-1])
    close = get_close_matches(str(entry["loc"][-1]), known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(known)}"
    return f"unknown key '{where}'; {hint}"


def _fields_at(location: Sequence[Any]) -> list[str]:
    model: Any = Config
    for part in location:
        if isinstance(model, type) and issubclass(model, Section) and part in model.model_fields:
            model = model.model_fields[part].annotation
        else:
            model = ModelConfig
    return sorted(model.model_fields)
