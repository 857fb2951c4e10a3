"""MODALITIES: one row per modality with its BIDS names and intensity treatment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dualflow.errors import ConfigError

NEVER_ZERO = ("pet", "perf")
"""Datatypes of images that are nowhere exactly 0 in the brain."""
Normaliser = Literal["robust", "white_matter", "suvr", "hounsfield"]


@dataclass(frozen=True)
class Modality:
    """A modality's names in BIDS, and how its voxels are treated.

    Attributes:
        suffix: BIDS suffix of its files.
        datatype: BIDS folder of its files.
        tracer: BIDS `trc-` label, for PET.
        normaliser: `robust` maps the brain's 0.5 and 99.5 percentiles to 0 and 1; `white_matter` maps 0 and the most
            frequent value of white matter to 0 and 0.5; `suvr` divides by the mean of the reference region;
            `hounsfield` maps a fixed brain window of CT to 0 and 1.
        unit: unit of the normalised values in sidecars.
        window: lower and upper normalised value in figures, and the data range of PSNR and SSIM.
        bias_field: whether N4 corrects the bias field first.
        target_normaliser: normaliser of a target, if it is another. Percentiles of the whole brain depend on atrophy
            and lesions, which would shift the scale of a whole person.
        reference: usual reference region of `suvr`, a row of REFERENCES.
    """

    suffix: str
    datatype: Literal["anat", "pet", "perf", "ct"]
    normaliser: Normaliser
    unit: str
    window: tuple[float, float]
    tracer: str | None = None
    bias_field: bool = False
    target_normaliser: Normaliser | None = None
    reference: str = "brain"

    @property
    def never_zero(self) -> bool:
        """Whether 0 means that a voxel is outside the field of view."""
        return self.datatype in NEVER_ZERO

    def as_target(self) -> Modality:
        """The row of this modality as a target."""
        return replace(self, normaliser=self.target_normaliser or self.normaliser)


MODALITIES: dict[str, Modality] = {
    "T1w": Modality(
        "T1w", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True, target_normaliser="white_matter"
    ),
    "T2w": Modality(
        "T2w", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True, target_normaliser="white_matter"
    ),
    "FLAIR": Modality(
        "FLAIR", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True, target_normaliser="white_matter"
    ),
    # Cerebral blood flow as ASL pipelines write it: perf/*_cbf.nii.gz beside the raw series.
    "CBF": Modality("cbf", "perf", "robust", "arbitrary", (0.0, 1.0)),
    # Not in the BIDS standard; named as in extension proposal 24.
    "CT": Modality("ct", "ct", "hounsfield", "HU/80", (0.0, 1.0)),
    "FDG": Modality("pet", "pet", "suvr", "SUVR", (0.0, 2.0), tracer="FDG"),
    # Amyloid.
    "AV45": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="AV45", reference="cerebellum"),
    "FBB": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="FBB", reference="cerebellum"),
    "FMM": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="FMM", reference="cerebellum"),
    "PIB": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="PIB", reference="cerebellar_grey"),
    "NAV4694": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="NAV4694", reference="cerebellar_grey"),
    # Tau.
    "AV1451": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="AV1451", reference="cerebellar_grey"),
    "MK6240": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="MK6240", reference="cerebellar_grey"),
    "PI2620": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="PI2620", reference="cerebellar_grey"),
}


def modality(name: str) -> Modality:
    """Return a row of MODALITIES.

    Raises:
        ConfigError: the name has no row.
    """
    try:
        return MODALITIES[name]
    except KeyError:
        raise ConfigError(
            f"unknown modality '{name}'; choose from: {', '.join(sorted(MODALITIES))}, or add a row to MODALITIES "
            "(docs/extend.md)"
        ) from None


CEREBELLUM = ("Cerebellum-Cortex", "Cerebellum-White-Matter")
REFERENCES: dict[str, tuple[str, ...]] = {
    "brain": (),
    "cerebellum": CEREBELLUM,
    "cerebellar_grey": CEREBELLUM[:1],
    "cerebellar_white": CEREBELLUM[1:],
    "brain_stem": ("Brain-Stem",),
    "pons": ("Pons",),
    "cerebellum_pons": (*CEREBELLUM, "Pons"),
    "cerebral_white": ("Cerebral-White-Matter",),
}
"""Reference regions of SUVR: bilateral structures of the atlas; empty for the scan's brain mask."""


def reference(name: str) -> str:
    """Return `name` if it is a row of REFERENCES or a NIfTI path.

    Raises:
        ConfigError: it is neither.
    """
    if name in REFERENCES or name.endswith((".nii", ".nii.gz")):
        return name
    raise ConfigError(
        f"unknown reference region '{name}'; choose from: {', '.join(REFERENCES)}, or give the path of a mask in "
        "template space (.nii.gz)"
    )
