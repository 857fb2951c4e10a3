"""The unit of a PET image: how sidecars spell it, and values that do not go with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from dualflow.imaging.geometry import FloatArray


@dataclass(frozen=True)
class Unit:
    """How a unit is spelt, and what a brain's brightest voxels can be in it.

    Attributes:
        name: as it is recorded.
        spelling: regular expression of the sidecar's text in lower case, without spaces, underscores and brackets.
        peak: least and largest 99.9th percentile that a scan of a head has.
    """

    name: str
    spelling: str
    peak: tuple[float, float]


_PER_ML = r"[/.*]?(ml|cc|cm\^?3)(\^?-1)?"
UNITS = (
    Unit("Bq/mL", rf"(bq|becquerels?){_PER_ML}", (1e2, 1e7)),
    Unit("kBq/mL", rf"k(bq|ilobecquerels?){_PER_ML}", (1e-1, 1e4)),
    Unit("MBq/mL", rf"m(bq|egabecquerels?){_PER_ML}", (1e-4, 1e1)),
    Unit("SUV (g/mL)", rf"suv(bw)?|(suv(bw)?)?g{_PER_ML}(suv(bw)?)?", (0.2, 100.0)),
    Unit("SUVR", r"suvr|ratio", (0.2, 20.0)),
)
UNKNOWN = "unknown"
# Filtered backprojection leaves some; below minus this share of the brightest voxels' value they are not noise.
NEGATIVE = 0.5


def recognise(stated: str) -> Unit | None:
    """The unit that a sidecar states, or None."""
    text = re.sub(r"[\s_{}()\[\]]", "", stated).lower()
    return next((unit for unit in UNITS if re.fullmatch(unit.spelling, text)), None)


def oddities(unit: Unit | None, stated: str, array: FloatArray) -> list[str]:
    """What a person should look at: a unit that is not known, values that no brain has in it."""
    peak, least = float(np.percentile(array, 99.9)), float(array.min())
    notes = []
    if stated and unit is None:
        notes.append(f"unit '{stated[:40]}' is not known")
    if unit and not unit.peak[0] <= peak <= unit.peak[1]:
        low, high = unit.peak
        notes.append(f"the brightest voxels have {peak:g} {unit.name}, expected {low:g} to {high:g}: check Units")
    if least < -NEGATIVE * abs(peak):
        notes.append(f"the least voxel has {least:g}, the brightest {peak:g}, expected no large negative values")
    return notes
