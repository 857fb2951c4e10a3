"""What a person's MR shows that uptake depends on."""

from __future__ import annotations

from dataclasses import dataclass

from dualflow.arrays import Doubles
from dualflow.cohort.lesions import Lesion


@dataclass(frozen=True)
class Findings:
    """Findings in the MR, on which the laws of uptake condition beside age, sex and diagnosis.

    Attributes:
        loss: fraction of each region's grey matter that has become fluid [R].
        ventricles: volume of the lateral ventricles in mL, at the template's head size.
        lesions: focal lesions.
    """

    loss: Doubles
    ventricles: float
    lesions: tuple[Lesion, ...] = ()

    def lesion_ml(self, side: str) -> float:
        """Tissue lost to lesions of one hemisphere, in mL."""
        return sum(lesion.ml for lesion in self.lesions if lesion.side == side)
