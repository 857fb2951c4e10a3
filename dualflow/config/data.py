"""Sections that say which data: the study, the embedded cohort, who is used for what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dualflow.config.section import Section
from dualflow.errors import ConfigError
from dualflow.layout import STUDY_NAME
from dualflow.modalities import modality


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
