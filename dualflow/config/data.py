"""Sections of the data: the study, the embedded cohort and the splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dualflow.config.section import ONCE, Section, UserPath, expected
from dualflow.errors import ConfigError
from dualflow.layout import STUDY_NAME
from dualflow.modalities import modality


class StudyConfig(Section):
    """The study: its files, modalities and side information."""

    name: Annotated[str, Field(pattern=STUDY_NAME.pattern), expected("text of letters, digits, _ and - only")]
    """Short name of the results folder and the MLflow experiment."""
    bids: UserPath | None = None
    """Root of the BIDS dataset, or with `samples` the folder of its files; without either, section `cohort` simulates
    the embedded cohort."""
    samples: UserPath | None = None
    """A table of scans instead of a BIDS dataset: a row per scan with `subject`, `session`, a column of paths for each
    modality (or `source` and `target`), and the side columns. Files lie in the folder `bids`, or else in that of the
    table, and paths are relative to it."""
    source: str = "T1w"
    """Source modality, a row of MODALITIES. Every scan needs it; it defines the native grid and the brain mask."""
    extra_sources: tuple[str, ...] = ()
    """Further source modalities of every scan; each is aligned with `source`."""
    target: str = "FDG"
    """Target modality, a row of MODALITIES."""
    side: Annotated[tuple[str, ...], ONCE] = ()
    """Side information: columns of participants.tsv, sessions.tsv or `samples`; unknown values (`n/a`) are allowed."""
    labels: Annotated[tuple[str, ...], ONCE] = ()
    """Further columns that no model sees, such as a diagnosis that is to be predicted."""
    where: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Selects files by BIDS entities of each modality, such as `{T1w: {acq: mprage}}`; an empty label selects names
    without the entity. A scan of which no source file fits is excluded."""
    runs: Literal["refuse", "first", "last"] = "refuse"
    """Selects among files that differ only in their run. `refuse` excludes a scan with several sources, and leaves the
    target of a scan with several targets unused."""
    join_sessions: bool = False
    """Whether a target in a session of its own belongs to the subject's only source without a target, as where MR and
    PET have different visits; the session of the source names the pair."""
    masks: UserPath | None = None
    """Brain masks of the study, a BIDS derivative dataset with `desc-brain_mask` files on the source's grid; scans
    without one are masked by deepbet."""
    exclusions: UserPath | None = None
    """Decisions of a reviewer, a table with the columns `subject`, `session`, `decision` (`keep`, `exclude` or
    `exclude-target`) and `reason`, as qc.html exports it; the index leaves these scans or targets out."""
    results: UserPath = Path("results")
    """Parent folder of the results of all studies."""

    @property
    def embedded(self) -> bool:
        """Whether the dataset is the embedded cohort."""
        return self.bids is None and self.samples is None

    @property
    def sources(self) -> tuple[str, ...]:
        """All source modalities in channel order, `source` first."""
        return (self.source, *self.extra_sources)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sources, then the target."""
        return (*self.sources, self.target)

    @model_validator(mode="after")
    def _one_dataset(self) -> Self:
        if self.samples and (self.where or self.runs != "refuse"):
            raise ConfigError(
                "where and runs select files of a BIDS dataset, but samples names the files itself; remove them"
            )
        if self.samples and self.join_sessions:
            raise ConfigError("join_sessions pairs files of a BIDS dataset, but samples names the pairs; remove it")
        if unused := sorted(self.where.keys() - set(self.modalities)):
            raise ConfigError(
                f"where names {', '.join(unused)}, expected modalities of the study: {', '.join(self.modalities)}"
            )
        return self

    @model_validator(mode="after")
    def _known_modalities(self) -> Self:
        names = self.modalities
        for name in names:
            modality(name)
        if both := sorted(set(self.side) & set(self.labels)):
            raise ConfigError(f"{both[0]} is in side and in labels; models see side and no labels, so keep one")
        if len(set(names)) < len(names):
            raise ConfigError(f"source, extra_sources and target are {', '.join(names)}; name each modality once")
        return self


class CohortConfig(Section):
    """The embedded cohort of simulated subjects with known ground truth."""

    subjects: int = Field(default=40, ge=3)
    """Number of subjects."""
    seed: int = Field(default=0, ge=0)
    """Seed of the simulation; equal seeds give equal bytes."""
    missing_target: float = Field(default=0.0, ge=0, lt=1)
    """Share of the subjects whose PET is not measured, drawn at random."""
    law: Literal["regional", "hard"] = "regional"
    """Law of uptake given MR and side information: `regional`, or `hard` with lesions, nonlinear and remote effects, a
    spread that differs between people, and two hidden subtypes of patients."""


class SplitConfig(Section):
    """Training, validation and test subjects; all scans of a subject are in one split."""

    validation: float = Field(default=0.15, ge=0, lt=1)
    """Share of the subjects for validation and early stopping."""
    test: float = Field(default=0.25, ge=0, lt=1)
    """Share of the subjects for testing."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random split."""
    test_subjects: tuple[str, ...] = ()
    """Test subjects by label without `sub-`; replaces the random test set."""
    validation_subjects: tuple[str, ...] = ()
    """Validation subjects by label; replaces the random validation set."""
    stratify: tuple[str, ...] = ()
    """Columns to stratify by, numbers by quartile; by default the first categorical column of `study.side`."""
    folds: Annotated[
        Annotated[int, Field(ge=2)] | Literal["leave-one-out"] | None,
        expected("a whole number of at least 2, or leave-one-out"),
    ] = None
    """Number of cross-validation folds instead of the share `test`; fold `fold` is the test set."""
    fold: int = Field(default=0, ge=0)
    """The fold that is the test set, from 0."""
    file: UserPath | None = None
    """A table of splits instead of random ones, such as an earlier `index/splits.tsv`: its column `split`, or with
    `folds` its column `fold`, for every subject with a pair; other subjects are ignored."""

    @model_validator(mode="after")
    def _consistent_options(self) -> Self:
        named = self.test_subjects or self.validation_subjects
        if named and (self.folds or self.file):
            raise ConfigError("test_subjects and validation_subjects exclude folds and file; keep one of the two")
        if self.fold and (self.folds is None or (isinstance(self.folds, int) and self.fold >= self.folds)):
            raise ConfigError(f"there is no fold {self.fold} with folds = {self.folds}; folds are counted from 0")
        return self
