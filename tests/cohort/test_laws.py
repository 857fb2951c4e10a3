"""The table of laws: the regional law is as it always was, and both share their people and anatomies."""

from typing import get_args

import numpy as np
import pytest

from dualflow.cli.study_commands import cohort as cohort_command
from dualflow.cohort import LAWS, participants
from dualflow.cohort.anatomy import anatomy
from dualflow.cohort.laws import effect_table
from dualflow.cohort.uptake import regions
from dualflow.config.data import CohortConfig


def test_configuration_and_command_offer_every_law():
    """`cohort.law` and `dualflow cohort --law` have the rows of LAWS, and the same default."""
    field = CohortConfig.model_fields["law"]
    option = next(option for option in cohort_command.params if option.name == "law")
    assert list(get_args(field.annotation)) == list(option.type.choices) == list(LAWS)
    assert field.default == option.default == participants(1, 0)[0].law == "regional"


def test_regional_uptake_is_unchanged():
    """A person of the regional law has the uptake of the first release of this law."""
    person = participants(2, 3)[1]
    findings = anatomy(person).findings
    columns = [regions().index.get_loc(name) for name in UNCHANGED]
    for law, column in (("uptake", 0), ("expected", 1)):
        values = getattr(LAWS["regional"], law)(person, findings)[columns]
        np.testing.assert_allclose(values, [row[column] for row in UNCHANGED.values()], atol=1e-5)


def test_laws_share_people_and_anatomy():
    """Traits, deformation and atrophy are equal; only the hard law has lesions."""
    for regional, hard in zip(participants(6, 0), participants(6, 0, "hard"), strict=True):
        assert (regional.age, regional.diagnosis, regional.unreported) == (hard.age, hard.diagnosis, hard.unreported)
        first, second = anatomy(regional), anatomy(hard)
        np.testing.assert_array_equal(first.displacement, second.displacement)
        np.testing.assert_array_equal(first.findings.loss, second.findings.loss)
        assert first.findings.ventricles == second.findings.ventricles
        assert not first.findings.lesions


@pytest.mark.parametrize("law", LAWS)
def test_draws_scatter_around_the_expected_uptake(law):
    """The mean of 200 draws deviates from the expected uptake by less than 3 %, and the draws are reproducible."""
    person = participants(3, 0, law)[2]
    findings = anatomy(person).findings
    draws = LAWS[law].draws(person, findings, 200, np.random.default_rng(0))
    assert draws.shape == (200, len(regions()))
    assert np.abs(draws.mean(axis=0) / LAWS[law].expected(person, findings) - 1).max() < 0.03
    np.testing.assert_array_equal(draws, LAWS[law].draws(person, findings, 200, np.random.default_rng(0)))


def test_a_person_is_a_draw():
    """Over people, log uptake deviates from the mean of draws as much as the draws do."""
    for name, law in LAWS.items():
        scores = []
        for person in participants(16, 0, name):
            findings = anatomy(person).findings
            draws = np.log(law.draws(person, findings, 30, np.random.default_rng(0)))
            scores.append((np.log(law.uptake(person, findings)) - draws.mean(axis=0)) / draws.std(axis=0, ddof=1))
        assert np.std(scores) == pytest.approx(1, abs=0.2)


def test_disease_has_the_known_pattern():
    """AD lowers posterior cingulate and parietal uptake; sensorimotor and visual cortex and putamen are spared."""
    effect = effect_table(LAWS["regional"])["ad_at_72"]
    assert effect["ctx-lh-posteriorcingulate"] < -0.2
    assert effect["ctx-rh-inferiorparietal"] < -0.15
    for spared in ("ctx-lh-precentral", "ctx-rh-postcentral", "ctx-lh-pericalcarine", "Left-Putamen"):
        assert effect[spared] > -0.03


def test_age_interacts_with_disease():
    """Disease lowers uptake more at 60 than at 72."""
    table = effect_table(LAWS["regional"])
    assert table.loc["ctx-lh-precuneus", "ad_at_60"] < 1.1 * table.loc["ctx-lh-precuneus", "ad_at_72"]


# Region -> uptake, expected uptake.
UNCHANGED = {
    "Left-Hippocampus": (0.45871, 0.45455),
    "Right-Cerebellum-Cortex": (0.90967, 0.89832),
    "Left-Cerebral-White-Matter": (0.45839, 0.43464),
    "ctx-lh-precuneus": (0.87796, 0.77516),
    "ctx-rh-superiorfrontal": (0.8954, 0.93131),
}
