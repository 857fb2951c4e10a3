"""Reference regions in template space: location, erosion, field of view, and masks of the user."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion

from dualflow.errors import HeaderError, IntensityError
from dualflow.imaging.atlas import desikan_killiany, merged_name
from dualflow.imaging.geometry import Volume, centred_affine, resample
from dualflow.imaging.reference import MIN_VOXELS, PONS_Z, reference_mask, reference_region
from dualflow.imaging.volume import write_volume
from dualflow.modalities import REFERENCES

SHAPE = (48, 56, 48)
GRID = centred_affine(np.array([0.0, -18.0, 5.0]), 4.0, SHAPE), SHAPE
ATLAS = [name for name in REFERENCES if name != "brain"]
FULL = np.ones(SHAPE, dtype=bool)
PET = Path("pet.nii")


def world(mask):
    return apply_affine(GRID[0], np.argwhere(mask).astype(float))


def region(name, *, grid=GRID, brain=FULL, in_view=FULL):
    return reference_region(str(name), grid, brain, in_view, PET)


@pytest.mark.parametrize("name", ATLAS)
def test_every_region_has_both_sides_on_the_usual_grid(name):
    """At 4 mm each region has enough voxels; left and right differ by less than 20 %."""
    points = world(reference_mask(name, GRID))
    left, right = (points[:, 0] < -1).sum(), (points[:, 0] > 1).sum()
    assert len(points) > MIN_VOXELS
    assert left == pytest.approx(right, rel=0.2)


@pytest.mark.parametrize(
    ("name", "centre", "ml"),
    [
        ("cerebellum", (0, -62, -36), (80, 150)),
        ("cerebellar_grey", (0, -62, -38), (25, 100)),
        ("pons", (0, -28, -34), (4, 12)),
        ("cerebral_white", (0, -17, 23), (100, 350)),
    ],
)
def test_regions_have_the_location_and_volume_of_their_anatomy(name, centre, ml):
    """Centre in MNI space within 5 mm, and volume after erosion by half the PET resolution."""
    points = world(reference_mask(name, GRID))
    np.testing.assert_allclose(points.mean(axis=0), centre, atol=5)
    assert ml[0] < len(points) * 4.0**3 / 1000 < ml[1]


def test_disjoint_and_nested_regions():
    """Cerebellar grey and white are disjoint; the pons is a part of the brain stem in the pons's z range."""
    masks = {name: reference_mask(name, GRID) for name in ATLAS}
    assert not (masks["cerebellar_grey"] & masks["cerebellar_white"]).any()
    assert not (masks["pons"] & masks["cerebellum"]).any()
    assert not (masks["pons"] & ~masks["brain_stem"]).any()
    assert not (masks["cerebellar_grey"] & ~masks["cerebellum"]).any()
    z = world(masks["pons"])[:, 2]
    assert PONS_Z[0] < z.min() < z.max() < PONS_Z[1]


def test_regions_are_eroded():
    """The region of the cerebellum lies inside the cerebellum eroded by two voxels of 1 mm."""
    fine = centred_affine(np.array([0.0, -60.0, -36.0]), 1.0, (120, 80, 70)), (120, 80, 70)
    image, names = desikan_killiany()
    labels = [index for index, name in names.items() if merged_name(name).startswith("Cerebellum")]
    whole = Volume(np.isin(np.asarray(image.dataobj), labels).astype(np.float32), image.affine)
    inside = resample(whole, *fine, order=0) > 0.5
    eroded = reference_mask("cerebellum", fine)
    assert eroded.any()
    assert not (eroded & ~binary_erosion(inside, iterations=2)).any()


def test_a_region_is_cut_to_brain_and_field_of_view():
    """The record has the share of the region inside the field of view."""
    full = region("cerebellum")
    assert full.record == {
        "reference_region": "cerebellum",
        "reference_voxels": int(full.mask.sum()),
        "reference_shown": 1.0,
    }
    brain, in_view = FULL.copy(), FULL.copy()
    brain[:20] = False
    in_view[:, :, :12] = False
    cut = region("cerebellum", brain=brain, in_view=in_view)
    np.testing.assert_array_equal(cut.mask, full.mask & brain & in_view)
    assert cut.record["reference_shown"] == pytest.approx(cut.mask.sum() / (full.mask & brain).sum(), abs=1e-3)
    assert 0 < cut.record["reference_shown"] < 1


def test_the_brain_region_is_the_brain_mask():
    """The region `brain` needs no atlas."""
    brain = np.zeros(SHAPE, dtype=bool)
    brain[10:30, 10:30, 10:30] = True
    result = region("brain", brain=brain)
    np.testing.assert_array_equal(result.mask, brain)
    assert result.record["reference_voxels"] == 8000


@pytest.mark.parametrize("name", ["pons", "brain"])
def test_too_few_voxels_are_refused(name):
    """A coarse grid has too few voxels of the pons, and an empty brain mask has no reference region."""
    coarse = centred_affine(np.array([0.0, -18.0, 5.0]), 16.0, (12, 14, 12)), (12, 14, 12)
    brain = np.full((12, 14, 12), name == "pons")
    with pytest.raises(IntensityError, match=rf"pet\.nii: shows \d+ voxels of reference region '{name}'.*16 mm"):
        region(name, grid=coarse, brain=brain, in_view=brain)


def test_a_reference_mask_of_the_user(tmp_path):
    """A binary mask on any grid is resampled; the record has its file name and digest, not its folder."""
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (40, -80, -60)
    mask = np.zeros((40, 30, 30))
    mask[10:30, 5:25, 5:25] = 255
    write_volume(tmp_path / "mask.nii.gz", mask, affine, dtype=np.uint8)
    result = region(tmp_path / "mask.nii.gz")
    points = world(result.mask)
    np.testing.assert_allclose(points.mean(axis=0), (1, -51, -31), atol=2)
    assert len(points) * 4.0**3 == pytest.approx(mask.sum() / 255 * 2.0**3, rel=0.1)
    assert result.record["reference_region"] == "mask.nii.gz"
    assert result.record["reference_sha256"] == hashlib.sha256((tmp_path / "mask.nii.gz").read_bytes()).hexdigest()
    assert str(tmp_path) not in str(result.record)


def test_a_reference_mask_that_is_no_image_is_refused(tmp_path):
    """The error names the file."""
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(HeaderError, match=r"mask\.nii\.gz"):
        region(path)
