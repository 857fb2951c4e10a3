"""Focal lesions: how often, where and how large, and what they do to tissue."""

from dataclasses import replace

import numpy as np
import pytest

from dualflow.cohort import participants
from dualflow.cohort.anatomy import anatomy, points_on_grid, tissue
from dualflow.cohort.lesions import CORE_LOSS, PENUMBRA_DEPTH, Lesion, core_share, draw_lesions, viability

GRID = np.diag([2.0, 2.0, 2.0, 1.0])
GRID[:3, 3] = (-86, -110, -84)
SHAPE = (86, 108, 86)
BALL = Lesion(np.array([30.0, -20.0, 20.0]), np.eye(3), 10.0)


def test_a_third_has_lesions_of_a_few_millilitres():
    """27 to 43 % of people have one to three lesions of about 0.5 to 10 mL, on either side."""
    lesions = [draw_lesions(person) for person in participants(240, 0, "hard")]
    assert 0.27 < np.mean([bool(entry) for entry in lesions]) < 0.43
    assert {len(entry) for entry in lesions} == {0, 1, 2, 3}
    volumes = [lesion.ml for entry in lesions for lesion in entry]
    assert 0.4 < min(volumes) < 2 < np.median(volumes) < 5 < max(volumes) < 10
    sides = [lesion.side for entry in lesions for lesion in entry]
    assert 0.3 < sides.count("left") / len(sides) < 0.7


def test_old_people_have_more_lesions():
    """The same people have lesions more often at 85 than at 55."""
    people = participants(150, 1, "hard")
    young, old = (sum(bool(draw_lesions(replace(person, age=age))) for person in people) for age in (55.0, 85.0))
    assert old > 2 * young > 0


def test_the_core_is_fluid_and_the_penumbra_is_not():
    """The core has lost its tissue; the penumbra keeps it, and its uptake recovers with distance."""
    points = np.stack([[30.0 + x, -20.0, 20.0] for x in (0, 14, 20, 50)], axis=1).astype(np.float32)
    np.testing.assert_allclose(core_share((BALL,), points), [CORE_LOSS, 0, 0, 0], atol=0.01)
    near, middle, far = viability((BALL,), points)[1:]
    assert 1 - PENUMBRA_DEPTH < near < middle < 0.9
    assert far == pytest.approx(1, abs=1e-3)


def test_shape_preserves_volume():
    """An ellipsoid has the volume of its ball."""
    shape = np.diag([1.25, 0.8, 1.0])
    points = np.indices((60, 60, 60)).reshape(3, -1).astype(np.float32) - 30
    inside = Lesion(np.zeros(3), shape, 10.0).distance(points) < 0
    assert inside.sum() == pytest.approx(4 / 3 * np.pi * 10**3, rel=0.03)


def test_lesions_turn_tissue_into_fluid():
    """Without its lesions, the same brain has as much more grey and white matter as `ml` says."""
    person = next(p for p in participants(60, 0, "hard") if len(draw_lesions(p)) == 1)
    body = anatomy(person)
    intact = replace(body, findings=replace(body.findings, lesions=()))
    points = points_on_grid(body.deform, GRID, SHAPE)
    with_lesion, without = (tissue(each, points) for each in (body, intact))
    lost = (without.grey + without.white - with_lesion.grey - with_lesion.white).sum() * 8 / 1000
    assert lost == pytest.approx(body.findings.lesions[0].ml, rel=0.3)
    np.testing.assert_allclose(
        with_lesion.grey + with_lesion.white + with_lesion.fluid,
        without.grey + without.white + without.fluid,
        atol=1e-5,
    )
    assert without.viability.min() == 1
    assert with_lesion.viability.min() < 0.6


def test_equal_people_have_equal_lesions():
    """Lesions depend on the person only."""
    for person in participants(6, 2, "hard"):
        first, second = draw_lesions(person), draw_lesions(person)
        assert [lesion.ml for lesion in first] == [lesion.ml for lesion in second]
