"""The hard law of uptake: nonlinear, with remote effects, a spread that differs between people, and two subtypes.

Given MR and side information, log uptake is a mixture of Gaussians, one per subtype, with equal covariances, so the
mean uptake is exact. All effects are invented; their directions follow the FDG literature.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from dualflow.arrays import Doubles
from dualflow.cohort.findings import Findings
from dualflow.cohort.people import Diagnosis, Person
from dualflow.cohort.uptake import CEREBRAL_LOBES, LIMBIC_TARGETS, regions

SUBTYPES = ("posterior", "frontal")
"""Patients have one of these patterns of hypometabolism, which neither MR nor side information shows."""
SUBTYPE_SHARES = (0.55, 0.45)
SUBTYPE_DEPTH: Mapping[Diagnosis, float] = {"CN": 0.0, "MCI": 0.07, "AD": 0.115}
"""Reduction of log uptake in the regions of a patient's subtype."""
SPREAD_RANGE = (0.6, 1.8)
"""Smallest and largest factor on the standard deviations of a person's random deviations."""
# Standard deviations of log uptake at a factor of 1.
GAIN_SD, HEMISPHERE_SD, LOBE_SD, HALF_SD, PAIR_SD, REGION_SD = 0.05, 0.012, 0.04, 0.022, 0.02, 0.018
DISEASE_SD = 0.15
_SEVERITY: Mapping[Diagnosis, float] = {"CN": 0.05, "MCI": 0.45, "AD": 0.85}
_POSTERIOR = (
    "ctx-posteriorcingulate", "ctx-isthmuscingulate", "ctx-precuneus", "ctx-inferiorparietal", "ctx-supramarginal",
    "ctx-superiorparietal", "ctx-bankssts", "ctx-lateraloccipital",
)  # fmt: skip
_ANTERIOR = ("ctx-rostralanteriorcingulate", "ctx-caudalanteriorcingulate", "ctx-insula", "Caudate")
_MOTOR = ("ctx-precentral", "ctx-paracentral")
_MEDIAL_TEMPORAL = ("Hippocampus", "Amygdala", "ctx-entorhinal", "ctx-parahippocampal")


def expected_uptake(person: Person, findings: Findings) -> Doubles:
    """Mean uptake [R] over subtypes, and over log-normal deviations, whose mean is exp(variance / 2)."""
    variance = (spread(person, findings) * deviations()) ** 2
    modes = np.exp(_log_uptake(person, findings) + subtype_effects(person.diagnosis))
    return np.asarray(SUBTYPE_SHARES @ modes * np.exp(variance.sum(axis=0) / 2), np.float64)


def person_uptake(person: Person, findings: Findings) -> Doubles:
    """The person's uptake [R]."""
    uptake: Doubles = draw_uptake(person, findings, 1, person.generator("uptake"))[0]
    return uptake


def draw_uptake(person: Person, findings: Findings, count: int, rng: np.random.Generator) -> Doubles:
    """Draw uptake [K, R] given MR and side information."""
    subtypes = draw_subtypes(count, rng)
    deviation = spread(person, findings) * rng.standard_normal((count, len(deviations()))) @ deviations()
    modes = _log_uptake(person, findings) + subtype_effects(person.diagnosis)
    return np.asarray(np.exp(modes[subtypes] + deviation), np.float64)


def draw_subtypes(count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Draw rows of SUBTYPES [K]; `draw_uptake` draws them first, so equal generators give equal subtypes."""
    return (rng.random(count) > SUBTYPE_SHARES[0]).astype(np.intp)


def traits(person: Person, findings: Findings) -> dict[str, Any]:
    """Subtype, lesions, ventricles and spread of a person."""
    subtype = SUBTYPES[int(draw_subtypes(1, person.generator("uptake"))[0])]
    return {
        "subtype": "none" if person.diagnosis == "CN" else subtype,
        "lesions": len(findings.lesions),
        "lesion_ml_left": round(findings.lesion_ml("left"), 2),
        "lesion_ml_right": round(findings.lesion_ml("right"), 2),
        "ventricles_ml": round(findings.ventricles, 2),
        "spread": round(spread(person, findings), 4),
    }


def spread(person: Person, findings: Findings) -> float:
    """Factor on the standard deviations of a person's random deviations; it grows with age and atrophy."""
    cortical = _mean_loss(findings.loss, regions()["lobe"].isin(CEREBRAL_LOBES))
    burden = (person.age - 71) / 8.5 + (cortical - 0.10) / 0.05
    smallest, largest = SPREAD_RANGE
    return float(smallest + (largest - smallest) * expit(0.9 * burden - 0.3))


def subtype_effects(diagnosis: Diagnosis) -> Doubles:
    """Effect of each subtype on log uptake [2, R]."""
    table = regions()
    posterior = table["merged"].isin(_POSTERIOR)
    frontal = ((table["lobe"] == "frontal") & ~table["merged"].isin(_MOTOR)) | table["merged"].isin(_ANTERIOR)
    return -SUBTYPE_DEPTH[diagnosis] * np.stack([posterior, frontal]).astype(np.float64)


@cache
def deviations() -> Doubles:
    """Log uptake per unit of each independent random factor [F, R], at a spread of 1."""
    table = regions()
    half = table["lobe"] + table["side"]
    groups = (
        (GAIN_SD, pd.Series("all", index=table.index)),
        (HEMISPHERE_SD, table["side"]),
        (LOBE_SD, table["lobe"]),
        (HALF_SD, half),
        (PAIR_SD, table["merged"]),
        (REGION_SD, pd.Series(table.index, index=table.index)),
    )
    blocks = [sd * pd.get_dummies(group).to_numpy(np.float64).T for sd, group in groups]
    return np.vstack([*blocks, DISEASE_SD * table["disease"].to_numpy(np.float64)])


def _log_uptake(person: Person, findings: Findings) -> Doubles:
    """Log uptake [R] that MR and side information determine, without the subtype."""
    table, loss = regions(), findings.loss
    medial = _mean_loss(loss, table["merged"].isin(_MEDIAL_TEMPORAL))
    ageing = expit((person.age - 74) / 6)
    # The same diagnosis costs more uptake where the medial temporal lobe is lost, and more in the young.
    severity = _SEVERITY[person.diagnosis] * (0.3 + 1.2 * _hill(medial, 0.22, 3))
    disease = (1 - np.exp(-1.8 * severity)) * (1 + 0.5 * np.tanh((68 - person.age) / 7))
    local = (0.06 + 0.28 * disease + 0.14 * ageing) * _hill(loss, 0.18, 3)
    # Some loss is compensated by other cortex, severe loss is not.
    recruited = _hill(medial, 0.16, 3)
    compensation = 0.32 * recruited * (1 - recruited) * table["lobe"].isin(("frontal", "occipital"))
    male = table["male"] * (person.sex == "M") * (1 - 0.5 * ageing)
    log = (
        np.log(table["base"])
        - 1.2 * table["age"] * ageing
        - 0.75 * table["disease"] * disease
        - local
        + compensation
        + male
        + _remote(findings, disease)
    )
    return np.asarray(log, np.float64)


def _remote(findings: Findings, disease: float) -> Doubles:
    """Effect [R] of lost tissue on uptake elsewhere."""
    table = regions()
    lost = pd.Series(findings.loss, index=table.index)
    frontal = np.asarray(table["lobe"] == "frontal")
    effect = -0.14 * expit((findings.ventricles - 22) / 2.5) * frontal
    for hemisphere, opposite in (("left", "right"), ("right", "left")):
        on_side, across = np.asarray(table["side"] == hemisphere), np.asarray(table["side"] == opposite)
        limbic = np.tanh(3 * lost[f"{hemisphere.capitalize()}-Hippocampus"])
        lesion = 1 - np.exp(-findings.lesion_ml(hemisphere) / 4)
        effect -= 0.12 * limbic * (0.5 + 0.5 * disease) * on_side * np.asarray(table["merged"].isin(LIMBIC_TARGETS))
        effect -= 0.22 * lesion * across * np.asarray(table["merged"] == "Cerebellum-Cortex")
        effect -= 0.10 * lesion * on_side * np.asarray(table["merged"] == "Thalamus-Proper")
    return np.asarray(effect, np.float64)


def _hill(value: Any, half: float, power: float) -> Any:
    """Saturating effect: 0 at 0, 0.5 at `half`, 1 at infinity."""
    return value**power / (value**power + half**power)


def _mean_loss(loss: Doubles, selected: pd.Series) -> float:
    return float(loss[np.asarray(selected)].mean())


NOTE = """
This cohort follows the hard law. `desc-expected` and `expected_uptake.tsv` average over the two subtypes of patients
and over the log-normal deviations; penumbras of lesions are in both volumes. `people.tsv` adds the subtype (`none` in
controls), number and mL of lesions by hemisphere, mL of the lateral ventricles, and `spread`, the factor on the
standard deviations of a person's random deviations. The law does not use `metabolism`. `effects.tsv` is for people
without lesions and with ventricles of 18 mL.
"""
