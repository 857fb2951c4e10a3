"""Sections of imaging: preprocessing to the model grid, and thresholds for review."""

from __future__ import annotations

from typing import Self

from pydantic import Field, FiniteFloat, PositiveFloat, model_validator

from dualflow.config.section import NameOrPath, Section
from dualflow.errors import ConfigError
from dualflow.modalities import reference


class PreprocessConfig(Section):
    """Preprocessing of raw scans to the model grid."""

    spacing_mm: float = Field(default=4.0, gt=0)
    """Voxel size of the model grid, which is aligned with the template."""
    shape: tuple[int, int, int] = (48, 56, 48)
    """Size of the model grid in voxels, centred on the template's brain: multiples of 2^levels of every flow."""
    bias_field: bool = True
    """Correct the source's bias field (N4)."""
    aligned: bool = False
    """Skip registration: targets and extra sources are in the source's space already, as in hybrid PET/MR."""
    reference_region: NameOrPath = "brain"
    """Reference region of SUVR: a row of REFERENCES, or the path of a mask in template space. If it is left out, it is
    that of the target's tracer: the brain for FDG, the cerebellum or its grey matter for amyloid and tau."""
    pet_window_s: tuple[FiniteFloat, FiniteFloat] | None = None
    """Start and end of the averaged part of a dynamic PET series, in seconds after injection; null for all frames."""
    pet_motion: bool = True
    """Align the frames of a dynamic PET series before averaging."""
    pet_resolution_mm: float | None = Field(default=None, gt=0)
    """Common resolution (FWHM) to which PET is smoothed; null for no smoothing."""
    scanner_resolution_mm: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Resolution (FWHM) of each scanner by its ManufacturersModelName, for `pet_resolution_mm`."""
    shards: int = Field(default=2, ge=1)
    """Number of jobs that share the scans; each job takes `workers` cores."""
    workers: int = Field(default=1, ge=1)
    """Worker processes of each job; each takes one core and at most 4 GiB of memory."""
    deadline_s: float = Field(default=900.0, gt=0)
    """Seconds for the preprocessing of one scan, after which its process is ended and the scan excluded."""

    def without_folders(self) -> Self:
        """The section with a mask of the reference region named by its file alone, for results and models."""
        # Paths of any system: a model trained on Windows may be exported elsewhere.
        name = self.reference_region.replace("\\", "/").rpartition("/")[2]
        return self.model_copy(update={"reference_region": name})

    @model_validator(mode="after")
    def _usable_pet_options(self) -> Self:
        reference(self.reference_region)
        if self.pet_window_s and not self.pet_window_s[0] < self.pet_window_s[1]:
            start, end = self.pet_window_s
            raise ConfigError(f"pet_window_s goes from {start:g} to {end:g}, expected a start before its end")
        if self.pet_resolution_mm and not self.scanner_resolution_mm:
            raise ConfigError("pet_resolution_mm needs the resolution of each scanner; fill scanner_resolution_mm")
        if self.scanner_resolution_mm and not self.pet_resolution_mm:
            raise ConfigError(
                "scanner_resolution_mm has no effect without pet_resolution_mm; set the resolution to reach"
            )
        coarser = {
            name: fwhm for name, fwhm in self.scanner_resolution_mm.items() if fwhm > (self.pet_resolution_mm or fwhm)
        }
        if coarser:
            raise ConfigError(
                f"pet_resolution_mm is {self.pet_resolution_mm:g}, finer than the scanners' {coarser}; raise it to "
                "the coarsest of them"
            )
        return self


class ReviewConfig(Section):
    """Thresholds of quality metrics beyond which a scan is flagged for review; flagged scans are used."""

    min_mutual_information: float = 0.15
    """Mutual information of an aligned image with its source, and of a source with the template, in nats."""
    min_template_overlap: float = 0.9
    """Dice overlap of the aligned brain with the template's."""
    min_target_coverage: float = 0.98
    """Share of the brain inside the target's field of view."""
    max_displacement_mm: float = 60.0
    """Mean displacement of the brain by an alignment."""
    brain_ml: tuple[float, float] = (900.0, 1900.0)
    """Plausible range of brain volumes, in mL."""
    min_mask_solidity: float = 0.8
    """Solidity of the brain mask, its volume over that of its convex hull; neck, eyes and leaks lower it."""
    min_mask_core: float = 0.985
    """Share of the brain mask in its largest component after opening by a ball of 8 mm; leaks and islands lower it."""
    max_mask_outside: float = 0.005
    """Share of the aligned brain mask more than 8 mm outside the template's brain."""
    max_mask_missing: float = 0.02
    """Share of the template's brain deeper than 8 mm that the aligned mask misses."""
    min_mask_symmetry: float = 0.94
    """Dice overlap of the aligned brain mask with its mirror image."""
    max_mask_stretch: float = 1.3
    """Ratio of the largest to the smallest scale of the alignment with the template; high for a partial brain."""
    max_deviation: float = 4.0
    """Outliers: distance of a metric from the study's median, in robust standard deviations (1.48 MAD)."""
