"""The hard law: an exact mean, two subtypes, a spread that differs between people, and remote effects."""

from dataclasses import replace

import numpy as np
import pytest

from dualflow.cohort import participants
from dualflow.cohort.anatomy import anatomy
from dualflow.cohort.findings import Findings
from dualflow.cohort.hard_law import (
    SPREAD_RANGE,
    SUBTYPES,
    draw_subtypes,
    draw_uptake,
    expected_uptake,
    person_uptake,
    spread,
    subtype_effects,
    traits,
)
from dualflow.cohort.lesions import Lesion
from dualflow.cohort.uptake import regions, tissue_loss

PEOPLE = participants(24, 0, "hard")
DRAWS = 20_000


def findings(person, ventricles=18.0, lesions=()):
    return Findings(tissue_loss(person), ventricles, lesions)


def log_change(person, first, second):
    ratio = expected_uptake(person, second) / expected_uptake(person, first)
    return dict(zip(regions().index, np.log(ratio), strict=True))


def contrast(uptake):
    """Log uptake of the posterior subtype's regions minus the frontal subtype's [K]."""
    posterior, frontal = subtype_effects("AD") < 0
    log = np.log(uptake)
    return log[:, posterior].mean(axis=1) - log[:, frontal].mean(axis=1)


@pytest.mark.parametrize("diagnosis", ["CN", "MCI", "AD"])
def test_expected_uptake_is_the_mean_of_draws(diagnosis):
    """In every region, the mean of 20,000 draws is the expected uptake within its Monte-Carlo error."""
    person = next(p for p in PEOPLE if p.diagnosis == diagnosis)
    draws = draw_uptake(person, findings(person), DRAWS, np.random.default_rng(0))
    error = draws.mean(axis=0) - expected_uptake(person, findings(person))
    assert np.abs(error / (draws.std(axis=0) / np.sqrt(DRAWS))).max() < 4.5
    # The median is lower, so the check notices a mean that ignores the deviations.
    median = np.median(draws, axis=0)
    assert np.abs((draws.mean(axis=0) - median) / (draws.std(axis=0) / np.sqrt(DRAWS))).max() > 4.5


def test_patients_have_two_modes_and_controls_one():
    """In AD, subtypes differ by 2 to 7 standard deviations of the posterior-frontal contrast, in controls by none."""
    for diagnosis, low, high in (("AD", 2, 7), ("CN", -0.1, 0.1)):
        for person in (p for p in PEOPLE if p.diagnosis == diagnosis):
            draws = draw_uptake(person, findings(person), 4000, np.random.default_rng(1))
            subtypes = draw_subtypes(4000, np.random.default_rng(1))
            posterior, frontal = (contrast(draws[subtypes == row]) for row in range(2))
            assert low < (frontal.mean() - posterior.mean()) / posterior.std() < high


def test_the_subtype_is_hidden():
    """MR findings and expected uptake of a person do not depend on the subtype, and half of patients have each."""
    patients = [p for p in participants(240, 3, "hard") if p.diagnosis != "CN"]
    subtypes = [traits(person, findings(person))["subtype"] for person in patients]
    assert 0.4 < subtypes.count(SUBTYPES[0]) / len(subtypes) < 0.7
    depth = [person.atrophy for person in patients]
    assert abs(np.corrcoef([name == SUBTYPES[0] for name in subtypes], depth)[0, 1]) < 0.2


def test_the_table_names_the_subtype_that_the_uptake_has():
    """Patients with AD of subtype `posterior` have lower posterior uptake than expected, those of `frontal` higher."""
    by_name = {name: [] for name in SUBTYPES}
    for person in (p for p in participants(120, 3, "hard") if p.diagnosis == "AD"):
        ratio = person_uptake(person, findings(person)) / expected_uptake(person, findings(person))
        by_name[traits(person, findings(person))["subtype"]].append(contrast(ratio[None])[0])
    assert np.mean(by_name["posterior"]) < -0.05 < 0.05 < np.mean(by_name["frontal"])


def test_spread_grows_with_age_and_atrophy():
    """The factor grows with both, covers most of its range over people, and scales the draws."""
    young = replace(PEOPLE[0], age=58.0, atrophy=0.0, diagnosis="CN")
    old, ill = replace(young, age=84.0), replace(young, age=84.0, atrophy=1.0)
    factors = [spread(person, findings(person)) for person in (young, old, ill)]
    assert factors == sorted(factors)
    everyone = [spread(person, findings(person)) for person in participants(120, 0, "hard")]
    low, high = SPREAD_RANGE
    assert low <= min(everyone) < 0.75 < 1.6 < max(everyone) <= high
    deviations = [
        np.log(draw_uptake(person, findings(person), 500, np.random.default_rng(0))).std(axis=0)
        for person in (young, ill)
    ]
    np.testing.assert_allclose(deviations[1] / deviations[0], factors[2] / factors[0], rtol=0.01)


def test_a_lesion_lowers_the_opposite_cerebellum():
    """Crossed diaschisis saturates at 20 %, and leaves the cerebellum of the same side alone."""
    person = PEOPLE[0]
    intact = findings(person)
    changes = []
    for ml in (2.0, 6.0, 40.0):
        lesion = Lesion(np.array([-40.0, 0.0, 30.0]), np.eye(3), 10.0, ml)
        changes.append(log_change(person, intact, findings(person, lesions=(lesion,))))
    crossed = [change["Right-Cerebellum-Cortex"] for change in changes]
    assert crossed[0] == pytest.approx(-0.087, abs=0.003)
    assert crossed == sorted(crossed, reverse=True)
    assert -0.225 < crossed[2] < -0.21
    assert changes[2]["Left-Cerebellum-Cortex"] == 0
    assert changes[2]["Left-Thalamus-Proper"] < -0.08
    assert changes[2]["ctx-lh-precuneus"] == 0


def test_large_ventricles_lower_frontal_uptake():
    """Frontal uptake falls by more than 10 % between small and large ventricles, other uptake not at all."""
    change = log_change(PEOPLE[0], findings(PEOPLE[0], 14.0), findings(PEOPLE[0], 30.0))
    assert change["ctx-lh-superiorfrontal"] < -0.1
    assert change["ctx-lh-precuneus"] == 0


def test_effects_interact():
    """Disease costs more uptake in the young and with medial temporal loss; moderate loss is compensated in part."""
    person = replace(PEOPLE[0], age=72.0)
    table = regions()

    def parietal(diagnosis, age, lost):
        loss = np.where(table["merged"].isin(["Hippocampus", "Amygdala"]), lost, 0.05)
        return np.log(expected_uptake(replace(person, diagnosis=diagnosis, age=age), Findings(loss, 18.0))[
            table.index.get_loc("ctx-lh-inferiorparietal")
        ])  # fmt: skip

    def effect(age, lost):
        return parietal("AD", age, lost) - parietal("CN", age, lost)

    assert effect(60, 0.3) < effect(80, 0.3) < -0.05
    assert effect(72, 0.5) < effect(72, 0.1) - 0.03

    def occipital(lost):
        loss = np.where(table["merged"].isin(["Hippocampus", "Amygdala", "ctx-entorhinal"]), lost, 0.0)
        return expected_uptake(person, Findings(loss, 18.0))[table.index.get_loc("ctx-lh-cuneus")]

    assert occipital(0.22) > 1.04 * occipital(0.0)
    assert occipital(0.22) > 1.02 * occipital(0.6)


def test_the_ventricles_are_those_of_the_anatomy():
    """Ventricles grow with atrophy, about 8 to 45 mL."""
    small, large = (anatomy(replace(PEOPLE[0], atrophy=atrophy)).findings.ventricles for atrophy in (0.0, 1.2))
    assert 8 < small < 0.8 * large < 45
