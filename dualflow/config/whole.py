"""The one configuration: a YAML file checked into frozen pydantic models; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from dualflow.commit import commit_json, digest_of
from dualflow.config.data import CohortConfig, SplitConfig, StudyConfig
from dualflow.config.imaging import PreprocessConfig, ReviewConfig
from dualflow.config.learning import (
    BaselineConfig,
    ConvertConfig,
    EvaluateConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
)
from dualflow.config.section import Section
from dualflow.errors import ConfigError
from dualflow.layout import Layout
from dualflow.modalities import REFERENCES

S = TypeVar("S", bound=Section)

SEEDED = ("unet",)
"""Baselines that are trained by gradient steps, and so with every seed."""


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
    return checked(Config, raw, name)


def checked(section: type[S], raw: Mapping[str, Any], name: str) -> S:
    """Check the values of a section; errors begin with `name`.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(_explain(entry, section) for entry in error.errors())) from None


def write_resolved(config: Config) -> Path:
    """Write every value of the configuration, defaults included, beside the results; return the file.

    Its name is its content's digest: a changed configuration is another file, so that a run at work keeps its own.
    """
    values = config.model_dump(mode="json")
    path = config.layout.resolved_config(digest_of(values)[:12])
    if not path.is_file():
        commit_json(path, values)
    return path


def public_values(config: Config) -> dict[str, Any]:
    """Return the configuration as tracked runs record it: without paths of this machine."""
    private = {"tracking": True, "study": {"bids", "samples", "masks", "results"}, "split": {"file"}}
    values: dict[str, Any] = config.model_dump(mode="json", exclude=private)  # type: ignore[arg-type]
    return values


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


def _explain(entry: Any, section: type[Section]) -> str:
    """One readable clause of a pydantic error."""
    where = ".".join(str(part) for part in entry["loc"])
    if entry["type"] != "extra_forbidden":
        text = str(entry["msg"]).removeprefix("Value error, ")
        return f"{where} = {entry['input']!r}: {text}" if where else text
    known = _fields_at(entry["loc"][:-1], section)
    close = get_close_matches(str(entry["loc"][-1]), known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(known)}"
    return f"unknown key '{where}'; {hint}"


def _fields_at(location: Sequence[Any], section: type[Section]) -> list[str]:
    model: Any = section
    for part in location:
        if isinstance(model, type) and issubclass(model, Section) and part in model.model_fields:
            model = model.model_fields[part].annotation
        else:
            model = ModelConfig
    return sorted(model.model_fields)
