"""Normalisers: each fits an invertible straight line to the brain's values and records it.

normalised = clip((raw - intercept) / slope); raw = normalised * slope + intercept. The record alone inverts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualflow.errors import IntensityError
from dualflow.imaging.geometry import BoolArray, FloatArray

PERCENTILES = (0.5, 99.5)
CLIP = (-0.5, 1.5)
BRAIN_WINDOW_HU = (0.0, 80.0)

Record = dict[str, Any]


def normalise(
    values: FloatArray, mask: BoolArray, normaliser: str, name: str = "image", region: BoolArray | None = None
) -> tuple[FloatArray, Record]:
    """Fit a normaliser within `region` and apply it within `mask`; outside that the result is 0.

    Args:
        values: raw voxels `[D, H, W]`.
        mask: brain `[D, H, W]`.
        normaliser: a row of NORMALISERS.
        name: how an error names the image.
        region: voxels `[D, H, W]` that the normaliser looks at, such as SUVR's reference region; left out, the mask.

    Raises:
        IntensityError: the region is empty, or the values in it cannot carry the normaliser.
    """
    inside = values[mask if region is None else region].astype(np.float64)
    if inside.size == 0:
        raise IntensityError(f"{name}: no voxel lies in the brain mask; check that the scan shows the head")
    record = NORMALISERS[normaliser](inside, name)
    return apply(values, record, mask), record


def apply(values: NDArray[Any], record: Mapping[str, Any], mask: BoolArray | None = None) -> FloatArray:
    """Normalise raw values by a record; outside `mask`, if one is given, the result is 0."""
    low = record["intercept"]
    # In float64, because raw PET in Bq/mL has more digits than float32 keeps through a difference. The span is that of
    # the end points, and adding 0 turns -0 into 0.
    scaled = (np.asarray(values, dtype=np.float64) - low) / ((low + record["slope"]) - low) + 0.0
    result: FloatArray = scaled.astype(np.float32)
    if record["clip"] is not None:
        least, most = (np.float32(bound) for bound in record["clip"])
        result = np.where(result > least, result, least)  # NaN becomes the lower bound
        result = np.where(result < most, result, most)
    return result if mask is None else result * mask


def invert(values: NDArray[Any], record: Mapping[str, Any]) -> FloatArray:
    """Normalised to raw values, by a record; exact for values that were not clipped."""
    result = np.asarray(values, dtype=np.float64) * record["slope"] + record["intercept"]
    return np.asarray(result, dtype=np.float32)


def _robust(inside: NDArray[np.float64], name: str) -> Record:
    low, high = (float(value) for value in np.percentile(inside, PERCENTILES))
    if not high > low:
        raise IntensityError(f"{name}: the brain's values are all {low:g}, expected contrast; export the scan again")
    return {
        "normaliser": "robust",
        "slope": high - low,
        "intercept": low,
        "clip": list(CLIP),
        "percentiles": list(PERCENTILES),
    }


def _suvr(inside: NDArray[np.float64], name: str) -> Record:
    """Uptake over that of the reference region, whatever the unit; what is in SUVR already is divided all the same."""
    reference = float(inside.mean())
    if not reference > 0:
        raise IntensityError(
            f"{name}: the reference region's mean is {reference:g}, expected uptake above 0; check the scan's units"
        )
    return {"normaliser": "suvr", "slope": reference, "intercept": 0.0, "clip": None, "reference_value": reference}


def _hounsfield(inside: NDArray[np.float64], name: str) -> Record:
    """The radiologist's brain window; clipped like the others, for the skull beside the brain has thousands of HU."""
    (low, high), middle = BRAIN_WINDOW_HU, float(np.median(inside))
    if not low < middle < high:
        raise IntensityError(
            f"{name}: the brain's median is {middle:.0f}, expected {low:g} to {high:g} Hounsfield units; "
            "convert the scan again with its rescale slope and intercept"
        )
    return {"normaliser": "hounsfield", "slope": high - low, "intercept": low, "clip": list(CLIP)}


NORMALISERS: dict[str, Callable[[NDArray[np.float64], str], Record]] = {
    "robust": _robust,
    "suvr": _suvr,
    "hounsfield": _hounsfield,
}
"""One row per `Modality.normaliser`: values inside the region it looks at -> record."""
