"""Rigid registration of rotated heads, distant scanner coordinates, and images that are assumed aligned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.linalg import polar
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dualflow.errors import RegistrationError
from dualflow.imaging import registration
from dualflow.imaging.alignment_search import AlignmentSearch
from dualflow.imaging.geometry import Volume, centred_affine, resample
from dualflow.imaging.mni_template import coarse_template

SHAPE = (50, 58, 50)
GRID = centred_affine(np.array([0.0, -18.0, 0.0]), 4.0, SHAPE)


def rigid(angles, shift):
    """Return a map that rotates about the centre of the head, then shifts."""
    centre = np.array([0.0, -18.0, 0.0])
    points_map = np.eye(4)
    points_map[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    points_map[:3, 3] = centre - points_map[:3, :3] @ centre + shift
    return points_map


@pytest.fixture(scope="module")
def head():
    """The template as a source, its brain mask, and a function that returns a moved target of another contrast."""
    image, mask = coarse_template()
    source = Volume(900 * resample(image, GRID, SHAPE), GRID)
    inside = resample(mask, GRID, SHAPE) > 0.5
    uptake = Volume(np.exp(-(((image.array - 0.6) / 0.2) ** 2)) * (mask.array > 0), image.affine)

    def target(target_to_source, shape=SHAPE):
        array = gaussian_filter(resample(uptake, GRID, shape, target_to_source), 0.7)
        return Volume(array + np.random.default_rng(0).normal(0, 0.03, shape).astype(np.float32), GRID)

    return source, inside, target


def error_mm(estimated, true, inside):
    """Return the mean distance between two maps over the brain."""
    points = apply_affine(np.linalg.inv(true), apply_affine(GRID, np.argwhere(inside)[::20].astype(float)))
    return np.linalg.norm(apply_affine(estimated, points) - apply_affine(true, points), axis=1).mean()


@pytest.mark.parametrize("angles", [(40, 0, 0), (-35, 0, 25)], ids=["pitch", "pitch and yaw"])
def test_a_rotation_of_forty_degrees_is_recovered(head, angles):
    """Mutual information and overlap are recorded before and after registration."""
    source, inside, target = head
    true = rigid(angles, (8, -10, 12))
    alignment = registration.register_rigid(target(true), source, inside)
    assert error_mm(alignment.points_map, true, inside) < 1.5
    information, overlap = alignment.before
    assert alignment.mutual_information > 3 * information
    assert alignment.overlap >= overlap


@pytest.mark.parametrize("turn", [(180, 0, 0), (0, 0, 180), (90, 0, 0)], ids=["feet first", "prone", "quarter"])
def test_a_source_turned_by_its_header_is_registered_to_the_template(turn):
    """The map undoes the turn and the tilt of the head, and its rotation is their angle."""
    image, mask = coarse_template()
    source_to_template = rigid((-12, 4, 5), (4, 12, -8)) @ np.diag([1.08, 0.95, 1.04, 1.0]) @ rigid(turn, (0, 0, 0))
    source = Volume(resample(image, GRID, SHAPE, source_to_template), GRID)
    inside = resample(mask, GRID, SHAPE, source_to_template) > 0.5
    alignment = registration.register_affine(source, inside)
    assert error_mm(alignment.points_map, source_to_template, inside) < 1
    angle = np.degrees(Rotation.from_matrix(polar(source_to_template[:3, :3])[0]).magnitude())
    assert alignment.rotation_deg == pytest.approx(angle, abs=2)
    assert alignment.in_view == pytest.approx(1, abs=0.01)


def test_a_cut_field_of_view_is_measured(head):
    """The share of the template's brain in view is that above the lowest slice."""
    source, inside, _ = head
    affine, first = GRID.copy(), 15
    affine[2, 3] += 4 * first
    cut = registration.register_affine(Volume(source.array[:, :, first:], affine), inside[:, :, first:])
    assert cut.in_view == pytest.approx(inside[:, :, first:].sum() / inside.sum(), abs=0.01)
    assert cut.in_view < 0.97


def test_trying_turned_heads_changes_nothing_for_an_upright_one(head, monkeypatch):
    """The map of an upright head is the same to the bit with and without the search among turned ones."""
    source, inside, _ = head
    expected = registration.register_affine(source, inside)
    monkeypatch.setattr(registration, "MAYBE_TURNED_NATS", np.inf)
    np.testing.assert_array_equal(registration.register_affine(source, inside).points_map, expected.points_map)


def test_a_target_turned_by_its_header_is_registered_to_its_source(head):
    """Header mistakes that affect one of two images are undone."""
    source, inside, target = head
    true = rigid((8, 0, 5), (8, -10, 12)) @ rigid((0, 180, 0), (0, 0, 0))
    assert error_mm(registration.register_rigid(target(true), source, inside).points_map, true, inside) < 1.5


def test_a_poor_result_is_repeated_with_more_starts(head, monkeypatch):
    """A misleading ranking makes the first optimisation worse than no motion; more starts find the alignment."""
    source, inside, target = head
    true = rigid((0, 0, 0), (4, 0, 0))
    wrong = registration._rigid_start(np.zeros(3), np.array([60.0, 60, 0]), np.diag([-1.0, -1, 1]))
    monkeypatch.setattr(AlignmentSearch, "_ranked", lambda *_: [wrong])
    assert error_mm(registration.register_rigid(target(true), source, inside).points_map, true, inside) < 1


def test_a_nearly_equal_optimisation_confirms_the_first_start(head, monkeypatch):
    """One optimisation that ends 3 % below aligned images is not repeated, and the images stay."""
    source, inside, target = head
    image, results = target(np.eye(4)), []
    before = registration.assume_aligned(image, source, inside).mutual_information

    def optimised(_, start):
        results.append((start, 0.97 * before))
        return results[-1]

    monkeypatch.setattr(AlignmentSearch, "_optimised", optimised)
    alignment = registration.register_rigid(image, source, inside)
    assert len(results) == 1
    np.testing.assert_array_equal(alignment.points_map, np.eye(4))


@pytest.mark.parametrize("true", [np.eye(4), rigid((1, 0, 0), (1, 0, 0))], ids=["aligned", "nearly"])
def test_small_motion_is_recovered(head, true):
    """A millimetre and a degree are corrected, aligned images stay, and mutual information never decreases."""
    source, inside, target = head
    alignment = registration.register_rigid(target(true), source, inside)
    assert error_mm(alignment.points_map, true, inside) < 0.5
    assert alignment.mutual_information >= alignment.before[0]


def test_scanner_coordinates_may_be_disjoint(head):
    """A target with an origin a metre away is registered from its centre of mass; the initial overlap is 0."""
    source, inside, target = head
    true = rigid((5, 0, 0), (3, 2, 1))
    image = target(true)
    shift = np.eye(4)
    shift[:3, 3] = (1000, 0, 0)
    alignment = registration.register_rigid(replace(image, affine=shift @ GRID), source, inside)
    assert error_mm(alignment.points_map @ shift, true, inside) < 1
    assert alignment.before == (0.0, 0.0)
    assert alignment.displacement_mm == pytest.approx(1000, abs=30)


def test_an_assumed_alignment_without_overlap_is_refused(head):
    """A target whose field of view misses the head has no mutual information with the source."""
    source, inside, target = head
    shift = np.eye(4)
    shift[:3, 3] = (1000, 0, 0)
    moved = replace(target(np.eye(4)), affine=shift @ GRID)
    with pytest.raises(RegistrationError, match=r"share 0\.000 nats"):
        registration.assume_aligned(moved, source, inside)


def test_an_assumed_alignment_moves_nothing(head):
    """The map is the identity, and there are no metrics before registration."""
    source, inside, target = head
    alignment = registration.assume_aligned(target(np.eye(4)), source, inside)
    assert alignment.before is None
    assert alignment.displacement_mm == 0
