"""MODALITIES: one row per modality says how its voxels are treated; adding a modality is adding a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dualflow.errors import ConfigError

Normaliser = Literal["robust", "suvr", "hounsfield"]


@dataclass(frozen=True)
class Modality:
    """How one modality is named in BIDS and treated between file and model.

    Attributes:
        suffix: BIDS suffix of its files.
        datatype: BIDS folder of its files.
        tracer: BIDS `trc-` label, for PET.
        normaliser: `robust` maps the brain's 0.5 and 99.5 percentiles to 0 and 1; `suvr` divides by the mean
            of the reference region; `hounsfield` maps the brain window of a CT, the same for everyone, to 0 and 1.
        unit: unit of the normalised values, as written to sidecars.
        window: lower and upper normalised value of pictures, and the data range of PSNR and SSIM.
        bias_field: whether N4 is applied before anything else.
    """

    suffix: str
    datatype: Literal["anat", "pet", "perf", "ct"]
    normaliser: Normaliser
    unit: str
    window: tuple[float, float]
    tracer: str | None = None
    bias_field: bool = False


MODALITIES: dict[str, Modality] = {
    "T1w": Modality("T1w", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True),
    "T2w": Modality("T2w", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True),
    "FLAIR": Modality("FLAIR", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True),
    # A map of cerebral blood flow as ASL pipelines write it: perf/*_cbf.nii.gz beside the raw series.
    "CBF": Modality("cbf", "perf", "robust", "arbitrary", (0.0, 1.0)),
    # Not yet in the BIDS standard; named as its extension proposal 24 does.
    "CT": Modality("ct", "ct", "hounsfield", "HU/80", (0.0, 1.0)),
    "FDG": Modality("pet", "pet", "suvr", "SUVR", (0.0, 2.0), tracer="FDG"),
    "AV45": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="AV45"),
    "FBB": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="FBB"),
    "PIB": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="PIB"),
    "AV1451": Modality("pet", "pet", "suvr", "SUVR", (0.0, 3.0), tracer="AV1451"),
}


def modality(name: str) -> Modality:
    """Return the row of `name`.

    Raises:
        ConfigError: the name has no row.
    """
    try:
        return MODALITIES[name]
    except KeyError:
        raise ConfigError(f"unknown modality '{name}'; choose from: {', '.join(sorted(MODALITIES))}") from None


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
"""Reference regions of SUVR: structures of the atlas, both sides together; none for the scan's own brain mask."""


def reference(name: str) -> str:
    """Return `name` if it is a row of REFERENCES or names a NIfTI file.

    Raises:
        ConfigError: it is neither.
    """
    if name in REFERENCES or name.endswith((".nii", ".nii.gz")):
        return name
    raise ConfigError(
        f"unknown reference region '{name}'; choose from: {', '.join(REFERENCES)}, or give the path of a mask in "
        "template space (.nii.gz)"
    )
