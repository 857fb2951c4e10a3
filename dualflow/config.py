"""The one configuration: a YAML file checked into frozen pydantic models; unknown keys are refused.

Each rule of the workflow takes only its own section, so a changed value reruns only what depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, ValidationError, model_validator

from dualflow.commit import commit_json, digest_of
from dualflow.errors import ConfigError
from dualflow.layout import STUDY_NAME, Layout
from dualflow.modalities import REFERENCES, modality, reference

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
    samples: Path | None = None
    """A table in place of a BIDS dataset: one row per scan with `subject`, `session`, a column of paths for each
    modality by its name (or `source` and `target`), and the side columns; the files lie in the table's folder or below,
    and paths are relative to it."""
    source: str = "T1w"
    """Modality everyone has, a row of MODALITIES: its grid, brain mask and template registration are the scan's."""
    extra_sources: tuple[str, ...] = ()
    """More modalities that everyone has and the model sees beside `source`; each is aligned with it."""
    target: str = "FDG"
    """Modality to learn: a row of MODALITIES."""
    side: tuple[str, ...] = ()
    """Columns of participants.tsv, sessions.tsv or `samples` given to the model; missing values (`n/a`) are supported
    inputs."""
    where: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Which of several files is meant: BIDS entities by modality, such as `{T1w: {acq: mprage}}`; an empty label means
    a name without the entity."""
    runs: Literal["refuse", "first", "last"] = "refuse"
    """Which of several files of a modality is taken that differ only in their run; `refuse` sets the scan aside."""
    masks: Path | None = None
    """The study's own brain masks, a BIDS derivative dataset with `desc-brain_mask` files on the source's grid; scans
    without one, and all where this is left out, get deepbet's."""
    results: Path = Path("results")
    """Folder that holds one folder per study."""

    @property
    def sources(self) -> tuple[str, ...]:
        """All modalities that the model sees, in the order of its channels: `source` first."""
        return (self.source, *self.extra_sources)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sources, then the target."""
        return (*self.sources, self.target)

    @model_validator(mode="after")
    def _one_dataset(self) -> Self:
        if self.bids and self.samples:
            raise ConfigError("bids and samples are two datasets; keep one")
        if self.samples and (self.where or self.runs != "refuse"):
            raise ConfigError("where and runs choose among names of a BIDS dataset; samples names the files itself")
        if unused := sorted(self.where.keys() - set(self.modalities)):
            raise ConfigError(f"where names {', '.join(unused)}; the study uses {', '.join(self.modalities)}")
        return self

    @model_validator(mode="after")
    def _known_modalities(self) -> Self:
        names = self.modalities
        for name in names:
            modality(name)
        if len(set(names)) < len(names):
            raise ConfigError(f"source, extra_sources and target are {', '.join(names)}; name each modality once")
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
    stratify: tuple[str, ...] = ()
    """Columns, as for `study.side`, whose values each split has its share of, numbers by quartile; left out, the first
    categorical one of `study.side`."""
    folds: Annotated[int, Field(ge=2)] | Literal["leave-one-out"] | None = None
    """Number of folds in place of the share `test`: fold `fold` is held out, and every person is in just one."""
    fold: int = Field(default=0, ge=0)
    """Which fold is held out, from 0."""
    file: Path | None = None
    """A kept table in place of drawing, such as an earlier `index/splits.tsv`: its column `split` for everyone with a
    pair, or with `folds` its column `fold`; people whom the study does not have may be in it."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        named = self.test_subjects or self.validation_subjects
        if named and (self.folds or self.file):
            raise ConfigError("test_subjects and validation_subjects go with neither folds nor file; choose one way")
        if self.fold and (self.folds is None or (isinstance(self.folds, int) and self.fold >= self.folds)):
            raise ConfigError(f"there is no fold {self.fold} with folds = {self.folds}; folds are counted from 0")
        return self


class PreprocessConfig(Section):
    """From raw scans to the model grid."""

    spacing_mm: float = Field(default=4.0, gt=0)
    """Voxel edge of the model grid, which is aligned with the template."""
    shape: tuple[int, int, int] = (48, 56, 48)
    """Size of the model grid in voxels, centred on the template's brain."""
    bias_field: bool = True
    """Correct the source's bias field (N4)."""
    aligned: bool = False
    """Trust that targets and extra sources lie in the source's space already (hybrid PET/MR, registered upstream)."""
    reference_region: str = "brain"
    """Region whose mean uptake is 1 SUVR: a row of REFERENCES, or the path of a mask in template space."""
    pet_window_s: tuple[FiniteFloat, FiniteFloat] | None = None
    """Start and end, in seconds after injection, of the part of a dynamic PET series that is averaged; None: all."""
    pet_motion: bool = True
    """Align the frames of a dynamic PET series with each other before they are averaged."""
    pet_resolution_mm: float | None = Field(default=None, gt=0)
    """Common resolution (FWHM) that PET is smoothed to; None: PET stays as it is."""
    scanner_resolution_mm: dict[str, PositiveFloat] = Field(default_factory=dict)
    """FWHM of each scanner, by the sidecar's ManufacturersModelName, as `pet_resolution_mm` needs it."""
    shards: int = Field(default=2, ge=1)
    """How many jobs share the scans; each job takes `workers` cores."""
    workers: int = Field(default=1, ge=1)
    """Worker processes of one job, for thousands of small scans; each takes one core and at most 4 GiB of memory."""

    @model_validator(mode="after")
    def _usable_pet_options(self) -> Self:
        reference(self.reference_region)
        if self.pet_window_s and not self.pet_window_s[0] < self.pet_window_s[1]:
            start, end = self.pet_window_s
            raise ConfigError(f"pet_window_s goes from {start:g} to {end:g}; give a start before its end")
        if self.pet_resolution_mm and not self.scanner_resolution_mm:
            raise ConfigError("pet_resolution_mm needs the resolution of each scanner; fill scanner_resolution_mm")
        coarser = {
            name: own for name, own in self.scanner_resolution_mm.items() if own > (self.pet_resolution_mm or own)
        }
        if coarser:
            raise ConfigError(
                f"pet_resolution_mm is {self.pet_resolution_mm:g}, finer than the scanners' {coarser}; raise it to "
                "that of the coarsest"
            )
        return self


class ReviewConfig(Section):
    """Quality figures beyond which a scan is flagged for review; it is used all the same."""

    min_mutual_information: float = 0.15
    """Nats that an aligned target shares with its source, and a source with the template."""
    min_template_overlap: float = 0.9
    """Dice of the aligned brain with the template's."""
    min_target_coverage: float = 0.98
    """Share of the brain that the target shows."""
    max_displacement_mm: float = 60.0
    """Mean distance by which an alignment moves the brain."""
    brain_ml: tuple[float, float] = (900.0, 1900.0)
    """Volume of a brain."""
    min_mask_solidity: float = 0.8
    """Volume of the brain mask over that of its convex hull; neck, eyes and leaks lower it."""
    min_mask_core: float = 0.985
    """Share of the brain mask that an opening by a ball of 8 mm leaves in one piece; leaks and islands lower it."""
    max_mask_outside: float = 0.005
    """Share of the aligned brain mask that lies more than 8 mm outside the template's brain."""
    max_mask_missing: float = 0.02
    """Share of the template's brain, deeper than 8 mm, that the aligned mask lacks."""
    min_mask_symmetry: float = 0.94
    """Dice of the aligned brain mask with its mirror image."""
    max_mask_stretch: float = 1.3
    """Largest over smallest scale of the alignment with the template; half a brain is stretched to a whole one."""
    max_deviation: float = 4.0
    """Distance of a figure from the study's median, in robust standard deviations (1.48 MAD)."""


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
    review: ReviewConfig = ReviewConfig()
    """When a scan is flagged for review."""
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

    @model_validator(mode="after")
    def _reference_mask_is_there(self) -> Self:
        # Not in the section itself: a model's card holds it too, and converting needs no reference.
        region = self.preprocess.reference_region
        if region not in REFERENCES and not Path(region).is_file():
            raise ConfigError(
                f"preprocess.reference_region {region} is not a file; name a mask in template space, or one of: "
                f"{', '.join(REFERENCES)}"
            )
        return self

    @property
    def layout(self) -> Layout:
        """Every path of this study."""
        return Layout(self.study.results / self.study.name)

    @property
    def bids(self) -> Path:
        """Root of the dataset in use, which paths are relative to: the study's own, or the embedded cohort."""
        return self.study.samples.parent if self.study.samples else self.study.bids or self.layout.bids

    @property
    def embedded(self) -> bool:
        """Whether the dataset in use is the embedded cohort."""
        return self.study.bids is None and self.study.samples is None

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
        text = str(entry["msg"]).removeprefix("Value error, ")
        return f"{where} = {entry['input']!r}: {text}" if where else text
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
