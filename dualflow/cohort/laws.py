"""LAWS: how uptake depends on what MR and side information show, and how it varies around that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dualflow.arrays import Doubles
from dualflow.cohort import hard_law
from dualflow.cohort.findings import Findings
from dualflow.cohort.lesions import Lesion, draw_lesions
from dualflow.cohort.people import SEVERITY, Diagnosis, Person, Sex
from dualflow.cohort.uptake import drawn_uptake, expected_uptake, person_uptake, regions

VENTRICLES_ML = 18.0
"""Volume of the lateral ventricles in the table of effects, about the cohort's mean."""


@dataclass(frozen=True)
class Law:
    """A law of uptake of pure tissue by region [R], given a person's findings in the MR and side information.

    Attributes:
        expected: (person, findings) -> uptake [R] expected from MR and side information.
        uptake: (person, findings) -> the person's uptake [R].
        draws: (person, findings, K, generator) -> uptake [K, R] drawn given MR and side information.
        lesions: the person's focal lesions.
        traits: (person, findings) -> further columns of the person's row in the table of truth.
        signal_sd: standard deviation between people of the log T1 signal of grey matter; fluid varies by three times
            as much.
        gamma_sd: standard deviation between people of the log exponent on the T1 signal.
        note: Markdown that the truth's README adds for this law.
    """

    expected: Callable[[Person, Findings], Doubles]
    uptake: Callable[[Person, Findings], Doubles]
    draws: Callable[[Person, Findings, int, np.random.Generator], Doubles]
    lesions: Callable[[Person], tuple[Lesion, ...]] = lambda person: ()
    traits: Callable[[Person, Findings], dict[str, Any]] = lambda person, findings: {}
    signal_sd: float = 0.0
    gamma_sd: float = 0.0
    note: str = ""


def effect_table(law: Law) -> pd.DataFrame:
    """Change of log expected uptake by region: from 60 to 80 years, MCI and AD against CN, being male.

    Tissue loss is the mean of people of that age and diagnosis, the ventricles have VENTRICLES_ML, and there are no
    lesions.
    """
    table = regions()

    def log_expected(age: float, diagnosis: Diagnosis, sex: Sex = "F") -> Doubles:
        severity = SEVERITY[diagnosis]
        person = Person("", age, sex, diagnosis, "A", severity, severity, seed=0, index=0)
        loss = table["thinning_age"] * ((age - 50) / 40) ** 1.3 + table["thinning_disease"] * severity
        findings = Findings(np.asarray(loss, np.float64), VENTRICLES_ML)
        return np.asarray(np.log(law.expected(person, findings)), np.float64)

    return pd.DataFrame(
        {
            "base_uptake": table["base"],
            "age_60_to_80": log_expected(80, "CN") - log_expected(60, "CN"),
            "mci_at_72": log_expected(72, "MCI") - log_expected(72, "CN"),
            "ad_at_72": log_expected(72, "AD") - log_expected(72, "CN"),
            "ad_at_60": log_expected(60, "AD") - log_expected(60, "CN"),
            "male": log_expected(72, "CN", "M") - log_expected(72, "CN", "F"),
        }
    )


def _regional_draws(person: Person, findings: Findings, count: int, rng: np.random.Generator) -> Doubles:
    return np.stack([drawn_uptake(person, findings.loss, rng) for _ in range(count)])


LAWS: Mapping[str, Law] = {
    "regional": Law(
        expected=lambda person, findings: expected_uptake(person, findings.loss),
        uptake=lambda person, findings: person_uptake(person, findings.loss),
        draws=_regional_draws,
    ),
    "hard": Law(
        expected=hard_law.expected_uptake,
        uptake=hard_law.person_uptake,
        draws=hard_law.draw_uptake,
        lesions=draw_lesions,
        traits=hard_law.traits,
        signal_sd=0.05,
        gamma_sd=0.10,
        note=hard_law.NOTE,
    ),
}
"""By `Person.law`."""
