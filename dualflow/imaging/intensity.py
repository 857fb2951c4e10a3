"""Normalisers: each fits an invertible linear scale to the brain's values.

normalised = clip((raw - intercept) / slope); raw = normalised * slope + intercept.
The record is sufficient to invert it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles, Floats, Singles
from dualflow.errors import IntensityError

PERCENTILES = (0.5, 99.5)
CLIP = (-0.5, 1.5)
INSIDE = np.float32(1e-6)
"""Value of a voxel of the mask that would be 0, which is the value of the background."""
PEAK_LEVELS, PEAK_VOXELS = 512, 5000
"""Levels at which the density of white matter is evaluated, and voxels that it is estimated from."""
BRAIN_WINDOW_HU = (0.0, 80.0)

Record = dict[str, Any]


def normalise(
    values: Singles, mask: Bools, normaliser: str, name: str = "image", region: Bools | None = None
) -> tuple[Singles, Record]:
    """Fit a normaliser within `region` and apply it within `mask`; the result is 0 outside the mask.

    Args:
        values: raw voxels `[D, H, W]`.
        mask: brain `[D, H, W]`.
        normaliser: a key of NORMALISERS.
        name: the image's name in errors.
        region: voxels `[D, H, W]` to fit, such as SUVR's reference region; None fits the mask.

    Raises:
        IntensityError: the region is empty, or its values do not suit the normaliser.
    """
    inside = values[mask if region is None else region].astype(np.float64)
    if inside.size == 0:
        raise IntensityError(f"{name}: no voxel lies in the brain mask; check that the scan shows the head")
    record = NORMALISERS[normaliser](inside, name)
    return apply(values, record, mask), record


def in_view(values: NDArray[Any], mask: Bools) -> Bools:
    """Voxels of the brain mask that an image on the model grid shows; those outside its field of view hold INSIDE."""
    return np.asarray(mask & (values != INSIDE))


def scored_voxels(target: NDArray[Any], mask: Bools) -> Bools:
    """Voxels of the brain mask that a target is scored on: those that it shows, or all if it shows none."""
    shown = in_view(target, mask)
    return shown if shown.any() else mask


def difference(estimate: Floats, target: Floats, mask: Bools) -> Floats:
    """`estimate - target` in the `scored_voxels`, 0 elsewhere: nothing is known of what the target does not show."""
    return np.where(scored_voxels(target, mask), estimate - target, np.float32(0))


def apply(values: NDArray[Any], record: Mapping[str, Any], mask: Bools | None = None) -> Singles:
    """Raw to normalised values by a record; if a mask is given, 0 outside of it and nowhere else."""
    low = record["intercept"]
    # In float64, because raw PET in Bq/mL has more digits than float32 keeps through a difference.
    scaled = (np.asarray(values, dtype=np.float64) - low) / (low + record["slope"] - low)
    # Adding 0 turns -0 into 0.
    result: Singles = (scaled + 0.0).astype(np.float32)
    if record["clip"] is not None:
        lowest, highest = (np.float32(end) for end in record["clip"])
        result = np.where(result > lowest, result, lowest)
        result = np.where(result < highest, result, highest)
    return result if mask is None else np.where(mask, np.where(result == 0, INSIDE, result), np.float32(0))


def invert(values: NDArray[Any], record: Mapping[str, Any]) -> Singles:
    """Normalised to raw values by a record; exact for values that were not clipped."""
    result = np.asarray(values, dtype=np.float64) * record["slope"] + record["intercept"]
    return np.asarray(result, dtype=np.float32)


def _robust(inside: Doubles, name: str) -> Record:
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


def _white_matter(inside: Doubles, name: str) -> Record:
    """The most frequent value of white matter becomes 0.5, like the peak of Nyul & Udupa (1999) for one tissue."""
    from scipy.stats import gaussian_kde  # half a second to import

    low, high = np.percentile(inside, PERCENTILES)
    if not high > low:
        raise IntensityError(f"{name}: white matter is all {low:g}, expected contrast; export the scan again")
    values = inside[(inside >= low) & (inside <= high)]
    levels = np.linspace(low, high, PEAK_LEVELS)
    peak = float(levels[gaussian_kde(values[:: -(-len(values) // PEAK_VOXELS)])(levels).argmax()])
    if not peak > 0:
        raise IntensityError(
            f"{name}: the most frequent value of white matter is {peak:g}, expected more than 0; check the intensities"
        )
    return {"normaliser": "white_matter", "slope": 2 * peak, "intercept": 0.0, "clip": list(CLIP), "peak": peak}


def _suvr(inside: Doubles, name: str) -> Record:
    """Uptake relative to the reference region, in any unit; images in SUVR are divided too."""
    reference = float(inside.mean())
    if not reference > 0:
        raise IntensityError(
            f"{name}: the reference region's mean is {reference:g}, expected uptake above 0; check the scan's units"
        )
    return {"normaliser": "suvr", "slope": reference, "intercept": 0.0, "clip": None, "reference_value": reference}


def _hounsfield(inside: Doubles, name: str) -> Record:
    """The radiological brain window, clipped because the skull has thousands of HU."""
    (low, high), middle = BRAIN_WINDOW_HU, float(np.median(inside))
    if not low < middle < high:
        raise IntensityError(
            f"{name}: the brain's median is {middle:.0f}, expected {low:g} to {high:g} Hounsfield units; "
            "convert the scan again with its rescale slope and intercept"
        )
    return {"normaliser": "hounsfield", "slope": high - low, "intercept": low, "clip": list(CLIP)}


NORMALISERS: dict[str, Callable[[Doubles, str], Record]] = {
    "robust": _robust,
    "white_matter": _white_matter,
    "suvr": _suvr,
    "hounsfield": _hounsfield,
}
"""By `Modality.normaliser`: the function that fits the values of a region, and returns the record."""
