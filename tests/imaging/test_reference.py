"""Reference regions lie where they should in template space."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from dualflow.errors import HeaderError, IntensityError
from dualflow.imaging.atlas import desikan_killiany, merged_name
from dualflow.imaging.geometry import Volume, apply_map, centred_affine, resample
from dualflow.imaging.reference import MIN_VOXELS, PONS_Z, reference_mask, reference_region
from dualflow.imaging.volume import write_volume
from dualflow.modalities import REFERENCES

SHAPE = (48, 56, 48)
GRID = centred_affine(np.array([0.0, -18.0, 5.0]), 4.0, SHAPE), SHAPE
ATLAS = [name for name in REFERENCES if name != "brain"]
EVERYWHERE = np.ones(SHAPE, dtype=bool)
PET = Path("pet.nii")


def world(mask):
    return apply_map(GRID[0], np.argwhere(mask).astype(float))


def region(name, *, grid=GRID, brain=EVERYWHERE, shown=EVERYWHERE):
    return reference_region(str(name), grid, brain, shown, PET)


@pytest.mark.parametrize("name", ATLAS)
def test_every_region_has_both_sides_on_the_usual_grid(name):
    """At 4 mm each has voxels enough, as many left as right to a fifth."""
    points = world(reference_mask(name, GRID))
    left, right = (points[:, 0] < -1).sum(), (points[:, 0] > 1).sum()
    assert len(points) > MIN_VOXELS
    assert left == pytest.approx(right, rel=0.2)


@pytest.mark.parametrize(
    ("name", "middle", "ml"),
    [
        ("cerebellum", (0, -62, -36), (80, 150)),
        ("cerebellar_grey", (0, -62, -38), (25, 100)),
        ("pons", (0, -28, -34), (4, 12)),
        ("cerebral_white", (0, -17, 23), (100, 350)),
    ],
)
def test_regions_lie_where_anatomy_has_them(name, middle, ml):
    """Middle in MNI space to 5 mm, and the volume of what is deeper than half a PET resolution."""
    points = world(reference_mask(name, GRID))
    np.testing.assert_allclose(points.mean(axis=0), middle, atol=5)
    assert ml[0] < len(points) * 4.0**3 / 1000 < ml[1]


def test_regions_are_apart_where_they_should_be():
    """Grey and white of the cerebellum share nothing, the pons is brain stem, and its height is the pons's."""
    masks = {name: reference_mask(name, GRID) for name in ATLAS}
    assert not (masks["cerebellar_grey"] & masks["cerebellar_white"]).any()
    assert not (masks["pons"] & masks["cerebellum"]).any()
    assert not (masks["pons"] & ~masks["brain_stem"]).any()
    assert not (masks["cerebellar_grey"] & ~masks["cerebellum"]).any()
    z = world(masks["pons"])[:, 2]
    assert PONS_Z[0] < z.min() < z.max() < PONS_Z[1]


def test_regions_keep_away_from_their_neighbours():
    """No voxel of the eroded cerebellum is nearer than 3 mm to what is not cerebellum."""
    fine = centred_affine(np.array([0.0, -60.0, -36.0]), 1.0, (120, 80, 70)), (120, 80, 70)
    image, names = desikan_killiany()
    wanted = [index for index, name in names.items() if merged_name(name).startswith("Cerebellum")]
    whole = Volume(np.isin(np.asarray(image.dataobj), wanted).astype(np.float32), image.affine)
    inside = resample(whole, *fine, order=0) > 0.5
    kept = reference_mask("cerebellum", fine)
    assert kept.any()
    assert not (kept & ~binary_erosion(inside, iterations=2)).any()


def test_what_is_outside_the_brain_or_the_field_of_view_does_not_count():
    """The region is cut to both, and the share that the PET shows of it is told."""
    whole = region("cerebellum")
    assert whole.record == {
        "reference_region": "cerebellum",
        "reference_voxels": int(whole.mask.sum()),
        "reference_shown": 1.0,
    }
    brain, shown = EVERYWHERE.copy(), EVERYWHERE.copy()
    brain[:20] = False
    shown[:, :, :12] = False
    cut = region("cerebellum", brain=brain, shown=shown)
    np.testing.assert_array_equal(cut.mask, whole.mask & brain & shown)
    assert cut.record["reference_shown"] == pytest.approx(cut.mask.sum() / (whole.mask & brain).sum(), abs=1e-3)
    assert 0 < cut.record["reference_shown"] < 1


def test_the_whole_brain_is_the_scans_own():
    """It needs no atlas: what is brain and shown."""
    brain = np.zeros(SHAPE, dtype=bool)
    brain[10:30, 10:30, 10:30] = True
    found = region("brain", brain=brain)
    np.testing.assert_array_equal(found.mask, brain)
    assert found.record["reference_voxels"] == 8000


@pytest.mark.parametrize("name", ["pons", "brain"])
def test_too_few_voxels_are_refused(name):
    """A coarse grid holds no pons, and a scan that misses the brain has no reference at all."""
    coarse = centred_affine(np.array([0.0, -18.0, 5.0]), 16.0, (12, 14, 12)), (12, 14, 12)
    brain = np.full((12, 14, 12), name == "pons")
    with pytest.raises(IntensityError, match=rf"pet\.nii: shows \d+ voxels of reference region '{name}'.*16 mm"):
        region(name, grid=coarse, brain=brain, shown=brain)


def test_a_users_mask_is_taken_as_it_is(tmp_path):
    """On whatever grid it is drawn, 0 and 1 or 0 and 255; its name and content are recorded, its folder is not."""
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (40, -80, -60)
    mask = np.zeros((40, 30, 30))
    mask[10:30, 5:25, 5:25] = 255
    write_volume(tmp_path / "own.nii.gz", mask, affine, dtype=np.uint8)
    found = region(tmp_path / "own.nii.gz")
    points = world(found.mask)
    np.testing.assert_allclose(points.mean(axis=0), (1, -51, -31), atol=2)
    assert len(points) * 4.0**3 == pytest.approx(mask.sum() / 255 * 2.0**3, rel=0.1)
    assert found.record["reference_region"] == "own.nii.gz"
    assert found.record["reference_sha256"] == hashlib.sha256((tmp_path / "own.nii.gz").read_bytes()).hexdigest()
    assert str(tmp_path) not in str(found.record)


def test_a_users_mask_that_is_no_image_is_named(tmp_path):
    """It goes through the same gate as every file."""
    path = tmp_path / "own.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(HeaderError, match=r"own\.nii\.gz"):
        region(path)
