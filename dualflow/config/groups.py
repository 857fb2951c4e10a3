"""Section of group studies: imputation of missing targets and analyses of the completed tables."""

from __future__ import annotations

from pydantic import Field, field_validator

from dualflow.config.section import Section, UserPath, require_folder_name


class ImputeConfig(Section):
    """Region values of scans without a target, and the analyses of the completed tables."""

    model: str | None = None
    """Model that imputes: a flow or a baseline with a distribution; null for the main flow."""
    draws: int = Field(default=20, ge=2)
    """Draws of each missing scan, which give as many completed tables."""
    volumes: int = Field(default=0, ge=0)
    """Draws of each missing scan that are also written as volumes on the model grid."""
    terms: str | None = None
    """Terms of side information, such as `diagnosis * age + sex`; every term of an analysis must be among them. By
    default all columns of `study.side`, without interactions."""
    references: dict[str, str] = Field(default_factory=dict)
    """Reference level of categorical columns, such as `{diagnosis: CN}`; by default the first in alphabetical order."""
    meta_regions: UserPath | None = None
    """A table with the columns `meta_region` and `region` in place of the built-in lobes and AD signature; regions
    without hemisphere, such as `precuneus` and `Hippocampus`."""
    analyses: dict[str, str] = Field(default_factory=dict)
    """Analyses of the workflow by name: formulas such as `suvr ~ diagnosis + age + sex`."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""

    @field_validator("references", mode="before")
    @classmethod
    def _levels(cls, references: object) -> object:
        """Groups that are coded by numbers are levels all the same."""
        if not isinstance(references, dict):
            return references
        return {name: str(level) if type(level) is int else level for name, level in references.items()}

    @field_validator("analyses")
    @classmethod
    def _names(cls, analyses: dict[str, str]) -> dict[str, str]:
        for name in analyses:
            require_folder_name("analyses", name)
        return analyses
