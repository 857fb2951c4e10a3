"""The configuration of a study, and the values derived from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from dualflow.commit import commit_json
from dualflow.config.data import CohortConfig, SplitConfig, StudyConfig
from dualflow.config.groups import ImputeConfig
from dualflow.config.imaging import PreprocessConfig, ReviewConfig
from dualflow.config.learning import (
    SEEDED,
    BaselineConfig,
    ConvertConfig,
    EvaluateConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
)
from dualflow.config.section import Section, path_fields, require_folder_name
from dualflow.config.tracking_uri import public_uri
from dualflow.digests import digest_of
from dualflow.errors import ConfigError
from dualflow.layout import Layout
from dualflow.modalities import MODALITIES, REFERENCES

CEILINGS = ("attainable", "oracle", "true_law")
"""Rows of the tables of a simulated study beside its models: what its law allows."""


class Config(Section):
    """The configuration of a study, one field per section."""

    study: StudyConfig
    """Modalities, files and side information."""
    cohort: CohortConfig = CohortConfig()
    """The embedded cohort."""
    split: SplitConfig = SplitConfig()
    """Training, validation and test subjects."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """From raw scans to the model grid."""
    review: ReviewConfig = ReviewConfig()
    """Thresholds beyond which a scan is flagged for review."""
    model: ModelConfig = ModelConfig()
    """The main flow."""
    extra_models: dict[str, ModelConfig] = Field(default_factory=dict)
    """Further flows to train, by name."""
    train: TrainConfig = TrainConfig()
    """Training of flows and networks."""
    baselines: BaselineConfig = BaselineConfig()
    """Models that the flows are compared with."""
    convert: ConvertConfig = ConvertConfig()
    """Sampling of synthetic volumes."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation of the models."""
    impute: ImputeConfig | None = None
    """Imputation and group analyses as steps of the workflow; without the section, `dualflow impute` has its defaults
    and the workflow leaves it out."""
    tracking: TrackingConfig = TrackingConfig()
    """Experiment tracking."""

    @model_validator(mode="before")
    @classmethod
    def _reference_region_of_the_tracer(cls, values: Any) -> Any:
        study, preprocess = values.get("study"), values.get("preprocess", {})
        if not isinstance(study, dict) or not isinstance(preprocess, dict):
            return values
        usual = MODALITIES.get(str(study.get("target", StudyConfig.model_fields["target"].default)))
        if usual is None or preprocess.get("reference_region") is not None:
            return values
        return {**values, "preprocess": {**preprocess, "reference_region": usual.reference}}

    @model_validator(mode="after")
    def _files_exist(self) -> Self:
        # Not in the sections: a model card holds them too, and converting needs none of these files.
        study, region = self.study, self.preprocess.reference_region
        _require(study.bids, Path.is_dir, "study.bids", "a folder", "the root of a dataset")
        _require(study.samples, Path.is_file, "study.samples", "a file", "a table of scans")
        _require(study.masks, Path.is_dir, "study.masks", "a folder", "the root of a BIDS dataset of brain masks")
        if self.impute is not None:
            _require(self.impute.meta_regions, Path.is_file, "impute.meta_regions", "a file", "a table of meta-regions")
        remedy = "a table of decisions, as qc.html exports it"
        _require(study.exclusions, Path.is_file, "study.exclusions", "a file", remedy)
        _require(self.split.file, Path.is_file, "split.file", "a file", "a table of splits such as index/splits.tsv")
        if region not in REFERENCES:
            remedy = f"a mask in template space, or one of: {', '.join(REFERENCES)}"
            _require(Path(region), Path.is_file, "preprocess.reference_region", "a file", remedy)
        return self

    @model_validator(mode="after")
    def _paths_have_no_wildcards(self) -> Self:
        study = self.study
        paths = {
            "study.results": study.results,
            "study.bids": study.bids,
            "study.samples": study.samples,
            "study.exclusions": study.exclusions,
            "split.file": self.split.file,
            "preprocess.reference_region": self.preprocess.reference_region,
            "impute.meta_regions": self.impute.meta_regions if self.impute else None,
        }
        # Inputs and outputs of the workflow's rules. Nothing escapes a brace in them.
        if braced := [key for key, path in paths.items() if set("{}") & set(str(path))]:
            raise ConfigError(
                f"{braced[0]} = {paths[braced[0]]}: has a brace, which Snakemake takes for a wildcard, expected a path "
                "without { and }; rename the file or folder"
            )
        return self

    @model_validator(mode="after")
    def _classifies_what_models_do_not_know(self) -> Self:
        column = self.evaluate.classify
        if column in self.study.side:
            raise ConfigError(
                f"evaluate.classify = {column} is in study.side: a synthetic target that was drawn knowing it gives "
                f"the answer away; move {column} to study.labels and train again"
            )
        if column is not None and column not in self.study.labels:
            raise ConfigError(f"evaluate.classify = {column} is not in study.labels; add it there")
        return self

    @model_validator(mode="after")
    def _imputes_with_a_trained_model(self) -> Self:
        names = [*self.flows, *self.baselines.models]
        if self.imputing_model not in names:
            raise ConfigError(
                f"impute.model = {self.imputing_model} is no model of the study; choose from: {', '.join(names)}, or "
                "add it to baselines.models"
            )
        return self

    @model_validator(mode="after")
    def _model_names_differ(self) -> Self:
        for name in self.extra_models:
            require_folder_name("extra_models", name)
            if name in (self.model.preset, *self.baselines.models):
                raise ConfigError(f"extra_models: '{name}' is the name of another model; choose another name")
            if name in CEILINGS:
                raise ConfigError(f"extra_models: '{name}' is the name of a limit in the tables; choose another name")
        return self

    @property
    def layout(self) -> Layout:
        """Every path of this study."""
        return Layout(self.study.results / self.study.name)

    @property
    def bids(self) -> Path:
        """Root folder of the dataset, real or simulated; the paths in tables are relative to it."""
        study = self.study
        return study.bids or (study.samples.parent if study.samples else self.layout.bids)

    @property
    def embedded(self) -> bool:
        """Whether the dataset is the embedded cohort."""
        return self.study.embedded

    @property
    def trainings(self) -> list[tuple[str, int]]:
        """Every model with each of its seeds; closed-form baselines are fitted once, with the first seed."""
        seeds = self.train.seeds
        flows = [(name, seed) for name in self.flows for seed in seeds]
        baselines = [(name, s) for name in self.baselines.models for s in (seeds if name in SEEDED else seeds[:1])]
        return [*flows, *baselines]

    @property
    def imputing_model(self) -> str:
        """The model of `impute.model`, by default the main flow."""
        return (self.impute.model if self.impute else None) or self.model.preset

    @property
    def flows(self) -> dict[str, ModelConfig]:
        """All flows to train by name, the main one first."""
        return {self.model.preset: self.model, **self.extra_models}

    def with_fields(self, section: str, **values: object) -> Self:
        """The configuration with other values of some fields of a section, which are not validated."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})


def write_resolved(config: Config) -> Path:
    """Write every value of the configuration, defaults included, beside the results; return the file.

    The file name is a digest of the content, so a changed configuration does not disturb a run in progress. Only its
    owner may read it if the tracking URI has credentials.
    """
    values, uri = config.model_dump(mode="json"), config.tracking.uri
    path, private = config.layout.resolved_config(digest_of(values)[:12]), public_uri(uri) != uri
    if _read_json(path) != values or (private and path.stat().st_mode & 0o077):  # missing, damaged or open to others
        commit_json(path, values, private=private)
    return path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def public_values(config: Config) -> dict[str, Any]:
    """Return the configuration for tracked runs and manifests, without folders: their names may identify people."""
    public = config.model_copy(update={"preprocess": config.preprocess.without_folders()})
    return public.model_dump(mode="json", exclude=_private_fields())


def is_private(key: str) -> bool:
    """Whether the value of a key, such as `study.bids` or the whole section `study`, may identify people."""
    fields: Any = {**_private_fields(), "preprocess": {"reference_region": True}}  # the region may be a file
    for part in key.split("."):
        if fields is True:
            return True
        if part not in fields:
            return False
        fields = fields[part]
    return True


def _private_fields() -> dict[str, Any]:
    """Fields that may identify people: paths, the store of tracked runs, and labels of subjects."""
    fields = path_fields(Config)
    return {**fields, "split": fields["split"] | {"test_subjects": True, "validation_subjects": True}, "tracking": True}


def _require(path: Path | None, exists: Callable[[Path], bool], key: str, kind: str, remedy: str) -> None:
    if path is None:
        return
    try:
        problem = "" if exists(path) else f"is not {kind}" if path.exists() else "does not exist"
    except OSError as error:  # a folder that may not be read, a name that is too long
        problem = f"cannot be looked up ({error.strerror})"
    if problem:
        raise ConfigError(f"{key} = {path}: {problem}, expected {kind}; name {remedy}")
