"""Corruptions: reproducible, confined to the mask, and each changes what its name says."""

from typing import get_args

import numpy as np
import pytest

from dualflow.evaluation.corruptions import CORRUPTIONS, GridScan, Kind, corrupt
from tests.support.brains import SPACING_MM, brain


@pytest.fixture(scope="module")
def scan():
    source, mask = brain(0)
    return GridScan(source, mask, SPACING_MM, target=np.where(mask, 1.5 - source, 0).astype(np.float32))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption(scan, name):
    """Each row gives a finite scan of the same size with source 0 outside the mask, and leaves its input as it was."""
    before = scan.source.copy(), scan.mask.copy()
    result = corrupt(name, scan, (1, 2))
    assert result.source.dtype == np.float32
    assert result.mask.dtype == bool
    assert result.source.shape == result.mask.shape == scan.mask.shape
    assert np.isfinite(result.source).all()
    assert result.mask.sum() > 500
    assert not result.source[~result.mask].any()
    assert np.array_equal(before[0], scan.source)
    assert np.array_equal(before[1], scan.mask)
    assert np.array_equal(result.source, scan.source) == (name == "clean")
    assert CORRUPTIONS[name].kind in get_args(Kind)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_seeded(scan, name):
    """Equal seeds give equal scans."""
    first, second = (corrupt(name, scan, 5) for _ in range(2))
    assert np.array_equal(first.source, second.source)
    assert np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("name", [name for name, row in CORRUPTIONS.items() if row.kind == "lesion"])
def test_lesions_lie_at_their_voxel(scan, name):
    """A lesion changes the intensity around its voxel to its side, and nothing far away."""
    result = corrupt(name, scan, 3)
    change = result.source - scan.source
    assert np.sign(change[result.lesion]) == (-1 if name.startswith("dark") else 1)
    far = np.linalg.norm(np.indices(scan.mask.shape).T - result.lesion, axis=-1).T * scan.spacing_mm > 24
    assert not change[far].any()


def test_kinds_of_change(scan):
    """Turns and shifts move the mask, a crop cuts it, and contrast changes keep it."""
    masks = {name: corrupt(name, scan, 4).mask for name in CORRUPTIONS}
    assert np.array_equal(masks["flip, up-down"], scan.mask[:, :, ::-1])
    assert 0.6 < masks["crop 20 %"].sum() / scan.mask.sum() < 0.95
    assert masks["skull left on"].sum() > 1.1 * scan.mask.sum()
    assert np.array_equal(masks["T2-like contrast"], scan.mask)
    moved = np.argwhere(masks["shift 8 mm"]).mean(axis=0) - np.argwhere(scan.mask).mean(axis=0)
    assert np.linalg.norm(moved) * scan.spacing_mm == pytest.approx(8, abs=1)


def test_target_is_needed_for_pet_as_source(scan):
    """Without a target the PET cannot be given as MR."""
    assert corrupt("PET given as MR", GridScan(scan.source, scan.mask, SPACING_MM), 1) is None
    assert np.corrcoef(corrupt("PET given as MR", scan, 1).source[scan.mask], scan.target[scan.mask])[0, 1] > 0.99
