"""MODALITIES: one row per modality says how its voxels are treated; adding a modality is adding a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dualflow.errors import ConfigError

Normaliser = Literal["robust", "suvr"]


@dataclass(frozen=True)
class Modality:
    """How one modality is named in BIDS and treated between file and model.

    Attributes:
        suffix: BIDS suffix of its files.
        datatype: BIDS folder of its files.
        tracer: BIDS `trc-` label, for PET.
        normaliser: `robust` maps the brain's 0.5 and 99.5 percentiles to 0 and 1; `suvr` divides by the mean
            of the reference region.
        unit: unit of the normalised values, as written to sidecars.
        window: lower and upper normalised value of pictures, and the data range of PSNR and SSIM.
        bias_field: whether N4 is applied before anything else.
    """

    suffix: str
    datatype: Literal["anat", "pet"]
    normaliser: Normaliser
    unit: str
    window: tuple[float, float]
    tracer: str | None = None
    bias_field: bool = False


MODALITIES: dict[str, Modality] = {
    "T1w": Modality("T1w", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True),
    "T2w": Modality("T2w", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True),
    "FLAIR": Modality("FLAIR", "anat", "robust", "arbitrary", (0.0, 1.0), bias_field=True),
    "FDG": Modality("pet", "pet", "suvr", "SUVR", (0.0, 2.0), tracer="FDG"),
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
