"""The simulated people: age, sex, diagnosis, scanner and severity of disease, all from one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np

Diagnosis = Literal["CN", "MCI", "AD"]
Sex = Literal["F", "M"]
Site = Literal["A", "B"]


@dataclass(frozen=True)
class Person:
    """One simulated person; these fields determine their scans.

    Attributes:
        label: BIDS subject label.
        age: years, true even where it is not reported.
        sex: F or M.
        diagnosis: cognitively normal, mild cognitive impairment or Alzheimer's dementia.
        site: scanner pair, which sets MR contrast and PET sharpness.
        atrophy: severity of tissue loss, about 0 (CN) to 1 (AD); it shows in the MR.
        metabolism: severity of hypometabolism on the same scale; coupled to `atrophy`, not determined by it.
        seed: seed of the cohort.
        index: place in the cohort, counted from 0.
        unreported: columns that participants.tsv leaves `n/a`.
        law: name of the law of uptake, a key of `laws.LAWS`.
        has_pet: whether the PET was measured; the ground truth is always written.
    """

    label: str
    age: float
    sex: Sex
    diagnosis: Diagnosis
    site: Site
    atrophy: float
    metabolism: float
    seed: int
    index: int
    unreported: frozenset[str] = field(default_factory=frozenset)
    law: str = "regional"
    has_pet: bool = True

    def generator(self, purpose: str) -> np.random.Generator:
        """Random generator of this person for `purpose`, independent of other purposes and persons."""
        return _generator(self.seed, self.index, _PURPOSES[purpose])


def participants(subjects: int, seed: int, law: str = "regional", missing: float = 0.0) -> list[Person]:
    """Draw `subjects` people; person i of a seed has the same traits for every `subjects`, `law` and `missing`.

    Args:
        subjects: number of people.
        seed: seed of the cohort.
        law: name of the law of uptake.
        missing: share of the people whose PET is not measured.
    """
    return [_person(index, seed, law, missing) for index in range(subjects)]


def expected_metabolism(diagnosis: Diagnosis, atrophy: float) -> float:
    """Mean severity of hypometabolism among people of this diagnosis and severity of atrophy."""
    severity = SEVERITY[diagnosis]
    return max(0.0, severity + _COUPLING * (atrophy - severity))


def _person(index: int, seed: int, law: str, missing: float) -> Person:
    # Each block of six holds every diagnosis at both sites once, so that small cohorts are balanced too.
    block, place = divmod(index, len(_CELLS))
    order = _generator(seed, block, _PURPOSES["block"]).permutation(len(_CELLS))
    diagnosis, site = _CELLS[order[place]]
    rng = _generator(seed, index, _PURPOSES["person"])
    age = float(np.round(np.clip(rng.normal(_MEAN_AGE[diagnosis], 8.5), 50, 89), 1))
    atrophy = float(np.clip(SEVERITY[diagnosis] + rng.normal(0, 0.2), 0, 1.6))
    metabolism = max(0.0, expected_metabolism(diagnosis, atrophy) + float(rng.normal(0, METABOLISM_SD)))
    sex: Sex = "M" if rng.random() < 0.5 else "F"
    unreported = frozenset(column for column, share in UNREPORTED.items() if rng.random() < share)
    label = f"C{index + 1:04d}"
    has_pet = _generator(seed, index, _PURPOSES["missing"]).random() >= missing
    return Person(label, age, sex, diagnosis, site, atrophy, metabolism, seed, index, unreported, law, has_pet)


def _generator(*keys: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(keys))


METABOLISM_SD = 0.12
"""Standard deviation of `Person.metabolism` around its expectation."""
SEVERITY: Mapping[Diagnosis, float] = {"CN": 0.05, "MCI": 0.5, "AD": 1.0}
UNREPORTED: Mapping[str, float] = {"age": 0.04, "sex": 0.02, "diagnosis": 0.06}
_MEAN_AGE: Mapping[Diagnosis, float] = {"CN": 69.0, "MCI": 71.0, "AD": 73.0}
_COUPLING = 0.5
_SITES: tuple[Site, ...] = ("A", "B")
_CELLS: tuple[tuple[Diagnosis, Site], ...] = tuple(product(SEVERITY, _SITES))
_PURPOSES = {
    "block": 0, "person": 1, "anatomy": 2, "loss": 3, "uptake": 4, "tilt": 5, "mr": 6, "pet": 7, "lesions": 8,
    "contrast": 9, "missing": 10,
}  # fmt: skip
