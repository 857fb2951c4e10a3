"""Grids and contrast of the simulated MR scanners."""

import nibabel as nib
import numpy as np

from dualflow.cohort import participants
from dualflow.cohort.scanner import SCANNERS, _with_contrast, t1_grid


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


def test_contrast_differs_between_people_of_the_hard_law():
    """Grey matter's signal varies by about 5 %, the exponent by 10 %; the regional law has the scanner's own."""
    people = [person for person in participants(120, 0, "hard") if person.site == "A"]
    scanners = [_with_contrast(SCANNERS["A"], person) for person in people]
    assert 0.03 < np.std([np.log(scanner.signal[0]) for scanner in scanners]) < 0.06
    assert 0.07 < np.std([np.log(scanner.gamma) for scanner in scanners]) < 0.12
    assert all(_with_contrast(SCANNERS[p.site], p) == SCANNERS[p.site] for p in participants(6, 0))
