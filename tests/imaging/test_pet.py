"""PET files are read as one image: time window, units, motion and common resolution."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pet_files import SHAPE, TIMES, save_pet
from raw_images import verify_image

from dualflow.config import PreprocessConfig
from dualflow.errors import DataError, GeometryError, IntensityError
from dualflow.imaging.geometry import FWHM
from dualflow.imaging.motion import Motion
from dualflow.imaging.pet import read_pet, read_scan
from dualflow.imaging.sidecar import read_sidecar
from dualflow.modalities import MODALITIES

CONFIG = PreprocessConfig(pet_motion=False)
FRAMES = 1000 * np.random.default_rng(0).gamma(4.0, 1.0, (3, *SHAPE)).astype(np.float32)
BQ = {"Units": "Bq/mL"}


def config_with(**options):
    """Return the configuration with some values replaced."""
    return CONFIG.model_copy(update=options)


@pytest.mark.parametrize(
    ("window", "weights"),
    [(None, (60, 120, 300)), ((60, 480), (0, 120, 300)), ((120, 240), (0, 60, 60)), ((170, 1000), (0, 10, 300))],
)
def test_frames_are_weighted_by_their_overlap_with_the_window(tmp_path, window, weights):
    """Weights are seconds inside the window, and the record has them."""
    path = save_pet(tmp_path / "pet.nii.gz", FRAMES, **TIMES, **BQ)
    volume, record = read_pet(path, read_sidecar(path), config_with(pet_window_s=window))
    np.testing.assert_allclose(volume.array, np.average(FRAMES, axis=0, weights=weights), rtol=1e-5)
    assert record["seconds_by_frame"] == {str(index): seconds for index, seconds in enumerate(weights) if seconds}
    assert (record["frames"], record["unit"], record["acquired_s"]) == (3, "Bq/mL", [0, 480])
    assert json.loads(json.dumps(record)) == record


def test_a_partly_covered_window_is_noted(tmp_path):
    """The mean is over the acquired part of the window, and the record notes its share."""
    path = save_pet(tmp_path / "pet.nii", FRAMES, **TIMES, **BQ)
    _, record = read_pet(path, read_sidecar(path), config_with(pet_window_s=(240, 720)))
    assert record["window_covered"] == 0.5
    assert record["notes"] == ["its frames cover 50% of the window"]
    assert read_pet(path, read_sidecar(path), config_with(pet_window_s=(240, 480)))[1]["notes"] == []


@pytest.mark.parametrize("described", [True, False])
def test_times_are_inherited_from_sidecars_above(tmp_path, described):
    """By the inheritance principle of BIDS, the nearest sidecar takes precedence over one at the root.

    The root is the folder of the subjects if no description names it.
    """
    folder = tmp_path / "sub-1" / "pet"
    folder.mkdir(parents=True)
    if described:
        (tmp_path / "dataset_description.json").write_text("{}")
    (tmp_path / "trc-FDG_pet.json").write_text(json.dumps(TIMES | BQ))
    path = save_pet(folder / "sub-1_trc-FDG_pet.nii", FRAMES, FrameDuration=[60, 60, 60])
    volume, record = read_pet(path, read_sidecar(path), CONFIG)
    np.testing.assert_allclose(volume.array, FRAMES.mean(axis=0), rtol=1e-5)
    assert record["unit"] == "Bq/mL"


@pytest.mark.parametrize(
    ("sidecar", "window", "words"),
    [
        (BQ, None, "FrameTimesStart is missing"),
        (TIMES | {"InjectionStart": None}, (60, 120), r"InjectionStart is missing.*leave preprocess\.pet_window_s out"),
        (TIMES, (600, 900), "acquired 0 to 480 s after injection, expected part of it in the window of 600 to 900 s"),
        (TIMES | {"FrameDuration": [60, 120]}, None, "expected 3, one per frame"),
    ],
)
def test_a_series_without_times_is_refused(tmp_path, sidecar, window, words):
    """Frames that cannot be averaged as configured are refused with the remedy."""
    path = save_pet(tmp_path / "pet.nii", FRAMES, **sidecar)
    with pytest.raises(DataError, match=words) as caught:
        read_pet(path, read_sidecar(path), config_with(pet_window_s=window))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_static_image_needs_no_times(tmp_path):
    """If a window is configured, the record notes that the image was not compared with it."""
    path = save_pet(tmp_path / "pet.nii", FRAMES[0], **BQ)
    volume, record = read_pet(path, read_sidecar(path), CONFIG)
    np.testing.assert_array_equal(volume.array, FRAMES[0])
    assert record == {"frames": 1, "unit": "Bq/mL", "notes": []}
    for sidecar in (BQ, BQ | {"FrameTimesStart": [0], "FrameDuration": [60]}):
        (note,) = read_pet(save_pet(path, FRAMES[0], **sidecar), sidecar, config_with(pet_window_s=(0, 60)))[1]["notes"]
        assert note.startswith("not compared with the window: ")
        assert "missing" in note


def test_a_static_image_is_compared_with_the_window(tmp_path):
    """An image inside the window is accepted, one that exceeds it is noted, and one outside is refused."""
    times = {"InjectionStart": 0, "FrameTimesStart": [1800, 2100], "FrameDuration": [300, 300]}
    path = save_pet(tmp_path / "pet.nii", FRAMES[0], **times, **BQ)
    assert read_pet(path, read_sidecar(path), config_with(pet_window_s=(1800, 2400)))[1]["notes"] == []
    (note,) = read_pet(path, read_sidecar(path), config_with(pet_window_s=(2000, 2400)))[1]["notes"]
    assert note == "is one image of 1800 to 2400 s, expected 2000 to 2400 s"
    with pytest.raises(DataError, match="expected part of it in the window"):
        read_pet(path, read_sidecar(path), config_with(pet_window_s=(3000, 3600)))


def test_frames_without_decay_correction_are_noted(tmp_path):
    """Their mean gives early frames more weight."""
    path = save_pet(tmp_path / "pet.nii", FRAMES, ImageDecayCorrected=False, **TIMES, **BQ)
    assert "decay" in read_pet(path, read_sidecar(path), CONFIG)[1]["notes"][0]


def test_a_constant_series_is_refused(tmp_path):
    """All voxels are equal, with and without motion correction."""
    path = save_pet(tmp_path / "pet.nii", np.zeros((3, *SHAPE)), **TIMES)
    for motion in (False, True):
        with pytest.raises(IntensityError, match="every voxel of its mean is 0"):
            read_pet(path, read_sidecar(path), config_with(pet_motion=motion))


def test_a_series_with_a_singular_affine_is_refused(tmp_path):
    """The geometry of series is checked as that of volumes."""
    path = save_pet(tmp_path / "pet.nii", FRAMES, **TIMES)
    data = bytearray(path.read_bytes())
    data[280:328] = bytes(48)  # the three rows of the sform
    path.write_bytes(bytes(data))
    with pytest.raises(GeometryError, match="singular"):
        read_pet(path, read_sidecar(path), CONFIG)


def test_other_modalities_are_read_unchanged(tmp_path):
    """An MR scan has no PET record."""
    path = save_pet(tmp_path / "t1.nii", FRAMES[0])
    volume, record = read_scan(verify_image(path), MODALITIES["T1w"], CONFIG)
    assert record == {}
    np.testing.assert_array_equal(volume.array, FRAMES[0])
    assert read_scan(verify_image(path), MODALITIES["FDG"], CONFIG)[1].keys() == {"pet"}


@pytest.mark.parametrize("name", ["FDG", "CBF"])
def test_nan_is_outside_the_field_of_view(tmp_path, name):
    """SPM writes it there. It is read as 0, which the record says; no note asks anyone to look at it."""
    image = FRAMES[0].copy()
    image[..., 0] = np.nan
    raw = verify_image(save_pet(tmp_path / "pet.nii", image, **BQ), skip_nan=True)
    volume, record = read_scan(raw, MODALITIES[name], CONFIG)
    np.testing.assert_array_equal(volume.array, np.nan_to_num(image))
    assert record.get("pet", record)["nan_as_zero"]
    assert not record.get("pet", {}).get("notes")
    with pytest.raises(IntensityError, match="NaN"):
        read_scan(raw, MODALITIES["T1w"], CONFIG)


def test_frames_do_not_count_where_they_are_nan(tmp_path):
    """The mean of a voxel is that of the frames that show it; without one it is 0, outside the field of view."""
    frames = FRAMES.copy()
    frames[0, 0] = frames[:, :, 0] = np.nan
    path = save_pet(tmp_path / "pet.nii", frames, **TIMES, **BQ)
    volume, record = read_scan(verify_image(path), MODALITIES["FDG"], CONFIG)
    expected = np.average(FRAMES, axis=0, weights=TIMES["FrameDuration"])
    expected[0] = np.average(FRAMES[1:, 0], axis=0, weights=TIMES["FrameDuration"][1:])
    expected[:, 0] = 0
    np.testing.assert_allclose(volume.array, expected, rtol=1e-5)
    assert record["pet"]["nan_as_zero"]
    with pytest.raises(IntensityError, match="every voxel is NaN"):
        read_pet(save_pet(path, np.stack([FRAMES[0], FRAMES[1] * np.nan, FRAMES[2]]), **TIMES), TIMES, CONFIG)


def test_padding_of_moved_frames_stays_outside_the_field_of_view(tmp_path, monkeypatch):
    """Interpolation rings around the edge of the view; a zero of a single frame is a measured value."""
    frames = FRAMES.copy()
    frames[..., -2:], frames[0, 4, 4, 1] = 0, 0
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    motions = {0: Motion(turned, 3.0, 4.0, 0), 1: Motion(np.eye(4), 0.0, 0.0, 1), 2: Motion(turned, 3.0, 4.0, 2)}
    monkeypatch.setattr("dualflow.imaging.pet.find_motion", lambda *_: (1, motions))
    path = save_pet(tmp_path / "pet.nii", frames, **TIMES, **BQ)
    volume, _ = read_pet(path, read_sidecar(path), config_with(pet_motion=True))
    assert (volume.array[..., -2:] == 0).all()
    assert (volume.array[..., :-2] != 0).all()


def test_smoothing_does_not_fill_what_is_outside_the_field_of_view(tmp_path):
    """Zeros stay zeros at a common resolution."""
    image = FRAMES[0].copy()
    image[..., -2:] = 0
    path = save_pet(tmp_path / "pet.nii", image, ManufacturersModelName="HR+")
    config = config_with(pet_resolution_mm=8.0, scanner_resolution_mm={"HR+": 5.0})
    volume, _ = read_pet(path, read_sidecar(path), config)
    assert (volume.array[..., -2:] == 0).all()
    assert (volume.array[..., :-2] > 0).all()


def width_mm(array, axis, edge):
    """Return the full width at half maximum of a Gaussian spot along an axis, from its second moment."""
    profile = array.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64)
    position = np.arange(len(profile)) * edge
    mean = np.average(position, weights=profile)
    return FWHM * np.sqrt(np.average((position - mean) ** 2, weights=profile))


def spot(shape, spacing, fwhm):
    """Return a Gaussian spot at the centre of a grid."""
    index = np.meshgrid(*[(np.arange(size) - size // 2) * edge for size, edge in zip(shape, spacing, strict=True)])
    distance = sum(part**2 for part in index).transpose(1, 0, 2)
    return 1000 * np.exp(-distance / 2 * (FWHM / fwhm) ** 2)


@pytest.mark.parametrize(("model", "native_fwhm"), [("HR+", 5.0), ("hrrt ", 3.0), ("Old", 8.0)])
def test_scanners_are_smoothed_to_the_common_resolution(tmp_path, model, native_fwhm):
    """A point source of each scanner is 8 mm wide along every axis of an anisotropic grid."""
    shape, spacing = (31, 33, 25), (1.5, 1.5, 2.5)
    path = save_pet(
        tmp_path / "pet.nii",
        spot(shape, spacing, native_fwhm),
        np.diag([*spacing, 1.0]),
        ManufacturersModelName=model,
    )
    config = config_with(pet_resolution_mm=8.0, scanner_resolution_mm={"HR+": 5.0, "HRRT": 3.0, "Old": 8.0})
    volume, record = read_pet(path, read_sidecar(path), config)
    widths = [width_mm(volume.array, axis, edge) for axis, edge in enumerate(spacing)]
    np.testing.assert_allclose(widths, 8.0, rtol=0.02)
    assert record["resolution"]["own_fwhm_mm"] == native_fwhm
    assert record["resolution"]["added_fwhm_mm"] == pytest.approx((64 - native_fwhm**2) ** 0.5, abs=1e-3)


@pytest.mark.parametrize(("model", "words"), [("GE", "scanner 'GE' is not known"), ("Coarse", "resolves 9 mm")])
def test_a_scanner_that_cannot_be_smoothed_to_it_is_refused(tmp_path, model, words):
    """An unknown scanner, and one with a coarser resolution."""
    path = save_pet(tmp_path / "pet.nii", FRAMES[0], ManufacturersModelName=model)
    config = config_with(pet_resolution_mm=8.0, scanner_resolution_mm={"HR+": 5.0, "Coarse": 9.0})
    with pytest.raises(DataError, match=words):
        read_pet(path, read_sidecar(path), config)
