"""Grids and resolution of the simulated scanners."""

import nibabel as nib
import numpy as np
import pytest

from dualflow.cohort import participants
from dualflow.cohort.pet_scanner import PET_FINE, PET_SHAPE, PET_VOXEL, _resolve
from dualflow.cohort.scanner import SCANNERS, t1_grid


def test_blur_preserves_activity_and_has_the_given_fwhm():
    """A point source keeps its total activity and has the given FWHM."""
    activity = np.zeros(PET_FINE, np.float32)
    activity[PET_FINE[0] // 2, PET_FINE[1] // 2, PET_FINE[2] // 2] = 1
    image = _resolve(activity, 6.0, 6.0)
    volume = float(np.prod(PET_VOXEL))
    assert image.sum() * volume == pytest.approx(8.0, rel=0.02)
    profile = image.sum(axis=(1, 2)) / image.sum()
    x = PET_VOXEL[0] * np.arange(PET_SHAPE[0])
    sd = np.sqrt((profile * x**2).sum() - (profile * x).sum() ** 2)
    assert sd * np.sqrt(8 * np.log(2)) == pytest.approx(6.0, rel=0.03)


def test_blur_grows_towards_the_edge():
    """A point source far from the axis has a lower peak than one on the axis."""
    peaks = []
    for offset in (0, 45):
        activity = np.zeros(PET_FINE, np.float32)
        activity[PET_FINE[0] // 2 + offset, PET_FINE[1] // 2, PET_FINE[2] // 2] = 1
        peaks.append(_resolve(activity, 5.0, 8.0).max())
    assert peaks[1] < 0.6 * peaks[0]


def test_t1_grids_are_oblique_and_differ_between_sites():
    """Each site has its axis order and voxel size, an oblique grid, and the isocentre at its centre."""
    subjects = participants(6, 0)
    for site in "AB":
        subject = next(p for p in subjects if p.site == site)
        affine, shape = t1_grid(subject)
        assert "".join(nib.aff2axcodes(affine)) == SCANNERS[site].orientation
        np.testing.assert_allclose(nib.affines.voxel_sizes(affine), SCANNERS[site].voxel)
        assert 0.2 < np.degrees(nib.affines.obliquity(affine)).max() < 16
        np.testing.assert_allclose(affine @ [*((np.array(shape) - 1) / 2), 1], [0, 0, 0, 1], atol=1e-9)
