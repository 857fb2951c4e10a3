"""Heads that lie badly: turned far, or nowhere near each other by the scanner's coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dualflow.errors import RegistrationError
from dualflow.imaging import registration
from dualflow.imaging.alignment_search import AlignmentSearch
from dualflow.imaging.geometry import Volume, apply_map, centred_affine, resample
from dualflow.imaging.mni_template import coarse_template

SHAPE = (50, 58, 50)
GRID = centred_affine(np.array([0.0, -18.0, 0.0]), 4.0, SHAPE)


def placed(angles, shift):
    """A rigid map that turns about the head's middle, then moves it."""
    centre = np.array([0.0, -18.0, 0.0])
    points_map = np.eye(4)
    points_map[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    points_map[:3, 3] = centre - points_map[:3, :3] @ centre + shift
    return points_map


@pytest.fixture(scope="module")
def head():
    """The template as a source with its brain mask, and a function that makes a target of another contrast from it."""
    image, mask = coarse_template()
    source = Volume(900 * resample(image, GRID, SHAPE), GRID)
    inside = resample(mask, GRID, SHAPE) > 0.5
    uptake = Volume(np.exp(-(((image.array - 0.6) / 0.2) ** 2)) * (mask.array > 0), image.affine)

    def target(target_to_source, shape=SHAPE):
        array = gaussian_filter(resample(uptake, GRID, shape, target_to_source), 0.7)
        return Volume(array + np.random.default_rng(0).normal(0, 0.03, shape).astype(np.float32), GRID)

    return source, inside, target


def error(estimated, true, inside):
    """Mean distance in mm between where two maps take the brain."""
    points = apply_map(np.linalg.inv(true), apply_map(GRID, np.argwhere(inside)[::20].astype(float)))
    return np.linalg.norm(apply_map(estimated, points) - apply_map(true, points), axis=1).mean()


@pytest.mark.parametrize("angles", [(40, 0, 0), (-35, 0, 25)], ids=["pitch", "pitch and yaw"])
def test_a_head_turned_by_forty_degrees_is_found(head, angles):
    """No start by itself is near; the figures before and after tell that it was far away and is not any more."""
    source, inside, target = head
    true = placed(angles, (8, -10, 12))
    alignment = registration.register_rigid(target(true), source, inside)
    assert error(alignment.points_map, true, inside) < 1.5
    information, overlap = alignment.before
    assert alignment.mutual_information > 3 * information
    assert alignment.overlap >= overlap


def test_a_poor_result_is_tried_again_from_where_the_scans_came(head, monkeypatch):
    """With a ranking that misleads, the first climb is worse than no motion; with more starts the head is alignment."""
    source, inside, target = head
    true = placed((0, 0, 0), (4, 0, 0))
    wrong = registration._rigid_start(np.zeros(3), np.array([60.0, 60, 0]), (0, 0, 180))
    monkeypatch.setattr(AlignmentSearch, "_ranked", lambda *_: [wrong])
    assert error(registration.register_rigid(target(true), source, inside).points_map, true, inside) < 1


@pytest.mark.parametrize("true", [np.eye(4), placed((1, 0, 0), (1, 0, 0))], ids=["aligned", "nearly"])
def test_small_shifts_are_found(head, true):
    """A millimetre and a degree are put right, and what lies aligned stays; no alignment shares less than before."""
    source, inside, target = head
    alignment = registration.register_rigid(target(true), source, inside)
    assert error(alignment.points_map, true, inside) < 0.5
    assert alignment.mutual_information >= alignment.before[0]


def test_scanner_coordinates_that_do_not_meet_are_no_obstacle(head):
    """A target written with an origin of its own, a metre away, is found by its middle; nothing was shared before."""
    source, inside, target = head
    true = placed((5, 0, 0), (3, 2, 1))
    image = target(true)
    away = np.eye(4)
    away[:3, 3] = (1000, 0, 0)
    alignment = registration.register_rigid(replace(image, affine=away @ GRID), source, inside)
    assert error(alignment.points_map @ away, true, inside) < 1
    assert alignment.before == (0.0, 0.0)
    assert alignment.displacement_mm == pytest.approx(1000, abs=30)


def test_a_trusted_target_that_shows_nothing_is_refused_in_a_line(head):
    """Taken to lie in the source's space, a target whose field of view misses the head shares nothing with it."""
    source, inside, target = head
    away = np.eye(4)
    away[:3, 3] = (1000, 0, 0)
    moved = replace(target(np.eye(4)), affine=away @ GRID)
    with pytest.raises(RegistrationError, match=r"share 0\.000 nats"):
        registration.assume_aligned(moved, source, inside)


def test_trust_moves_nothing(head):
    """What is said to be aligned has no figures of before, and stays where it is."""
    source, inside, target = head
    alignment = registration.assume_aligned(target(np.eye(4)), source, inside)
    assert alignment.before is None
    assert alignment.displacement_mm == 0
