"""The unit of a PET image: its spellings in sidecars, and the range of values it allows."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from dualflow.arrays import Singles


@dataclass(frozen=True)
class Unit:
    """A unit of PET images.

    Attributes:
        name: as recorded.
        spelling: regular expression of the sidecar's text in lower case, without spaces, underscores and brackets.
        peak: smallest and largest plausible 99.9th percentile of a head scan.
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
# Filtered back-projection leaves some negative voxels; beyond this share of the peak they are not noise.
NEGATIVE = 0.5


def parse_unit(stated: str) -> Unit | None:
    """The unit that a sidecar states; None if it is unknown."""
    text = re.sub(r"[\s_{}()\[\]]", "", stated).lower()
    return next((unit for unit in UNITS if re.fullmatch(unit.spelling, text)), None)


def unit_warnings(unit: Unit | None, stated: str, array: Singles) -> list[str]:
    """Notes for the reviewer: an unknown unit, or values that are implausible in it."""
    peak, minimum = float(np.percentile(array, 99.9)), float(array.min())
    notes = []
    if stated and unit is None:
        notes.append(f"unit '{stated[:40]}' is unknown")
    if unit and not unit.peak[0] <= peak <= unit.peak[1]:
        low, high = unit.peak
        notes.append(f"the brightest voxels have {peak:g} {unit.name}, expected {low:g} to {high:g}: check Units")
    if minimum < -NEGATIVE * abs(peak):
        notes.append(f"the smallest voxel is {minimum:g}, the brightest {peak:g}, expected no large negative values")
    return notes
