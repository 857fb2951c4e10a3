"""Anatomy of simulated subjects: deformation, affine and tissue."""

from dataclasses import replace

import numpy as np
import pytest

from dualflow.cohort import participants
from dualflow.cohort.anatomy import (
    MIN_JACOBIAN,
    anatomy,
    best_affine,
    jacobian,
    points_on_grid,
    tissue,
    transform,
)
from dualflow.imaging.atlas import desikan_killiany

GRID = np.diag([2.0, 2.0, 2.0, 1.0])
GRID[:3, 3] = (-86, -110, -84)
SHAPE = (86, 108, 86)


def test_jacobian_of_a_linear_map():
    """The determinant of x + A x is det(1 + A)."""
    matrix = np.array([[0.1, 0.05, 0], [0, -0.2, 0.1], [0.03, 0, 0.3]])
    points = 4.0 * np.indices((5, 6, 7))
    np.testing.assert_allclose(
        jacobian(np.tensordot(matrix, points, axes=1), 4.0), np.linalg.det(np.eye(3) + matrix), rtol=1e-5
    )


@pytest.mark.parametrize("index", range(4))
def test_deformation_never_folds(index):
    """Every cell keeps a positive volume, and the deformation is not trivial."""
    shape = anatomy(participants(4, 1)[index])
    assert jacobian(shape.displacement).min() >= MIN_JACOBIAN
    assert np.abs(shape.displacement).max() > 2


def test_spline_interpolation_agrees_with_direct_evaluation():
    """A spline through every third voxel deviates by less than 0.06 mm on average."""
    shape = anatomy(participants(1, 1)[0])
    splined = points_on_grid(shape.template_points, GRID, SHAPE)
    voxels = np.random.default_rng(0).integers(0, SHAPE, (500, 3)).T
    direct = shape.template_points(transform(GRID, voxels.astype(np.float32)))
    error = np.linalg.norm(splined[:, *voxels] - direct, axis=0)
    assert error.mean() < 0.06
    assert error.max() < 0.8


def test_best_affine_beats_the_pose_alone():
    """The fitted affine has a smaller residual over the head than the pose without deformation."""
    shape = anatomy(participants(1, 1)[0])
    points = transform(GRID, np.indices((86, 108, 86), dtype=np.float32)[:, 8:-8:9, 8:-8:9, 8:-8:9])
    whole = shape.template_points(points)
    residuals = [
        np.linalg.norm(whole - transform(a, points), axis=0).mean() for a in (best_affine(shape), shape.to_template)
    ]
    assert residuals[0] < residuals[1]
    assert residuals[0] < 4


def test_disease_grows_ventricles_and_loses_grey_matter():
    """With equal random numbers, atrophy widens the ventricles and turns grey matter into fluid."""
    atlas, _ = desikan_killiany()
    ventricles = np.isin(np.asarray(atlas.dataobj), (4, 43))
    subject = replace(participants(1, 1)[0], age=70.0)
    volumes = []
    for severity in (0.0, 1.2):
        shape = anatomy(replace(subject, atrophy=severity))
        points = points_on_grid(shape.template_points, GRID, SHAPE)
        index = np.rint(points - atlas.affine[:3, 3].reshape(3, 1, 1, 1)).astype(int)
        index = np.clip(index, 0, np.reshape(ventricles.shape, (3, 1, 1, 1)) - 1)
        parts = tissue(shape, points)
        volumes.append((ventricles[tuple(index)].sum(), parts.grey.sum(), (parts.grey + parts.fluid).sum()))
    (healthy_ventricles, healthy_grey, healthy_sum), (ventricles_in_ad, grey_in_ad, sum_in_ad) = volumes
    assert ventricles_in_ad > 1.25 * healthy_ventricles
    assert grey_in_ad < 0.95 * healthy_grey
    assert sum_in_ad == pytest.approx(healthy_sum, rel=0.05)
