"""Sections of imaging: from raw scans to the model grid, and when a scan is flagged for review."""

from __future__ import annotations

from typing import Self

from pydantic import Field, FiniteFloat, PositiveFloat, model_validator

from dualflow.config.section import Section
from dualflow.errors import ConfigError
from dualflow.modalities import reference


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
