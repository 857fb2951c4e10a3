"""The preprocessing of a pair, on a small head made from the template with known maps."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import nilearn.datasets
import numpy as np
import pytest
from nibabel.affines import apply_affine
from pet_files import save_pet
from raw_images import verify_image
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dualflow.config import PreprocessConfig, StudyConfig
from dualflow.data.preprocessing_files import preprocessing_files
from dualflow.digests import sha256
from dualflow.errors import DataError, IntensityError, RegistrationError
from dualflow.imaging import mask as masks
from dualflow.imaging import outputs, pipeline, registration
from dualflow.imaging import record as record_of
from dualflow.imaging.affines import FormCodes
from dualflow.imaging.geometry import Volume, centred_affine, resample
from dualflow.imaging.intensity import in_view
from dualflow.imaging.mask_qc import BOUNDS, measure_shape
from dualflow.imaging.mni_template import coarse_template
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.reference import reference_mask
from dualflow.imaging.volume import read_volume, write_volume
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.modalities import MODALITIES

# Tests share a preprocessed pair, so they run in one worker.
pytestmark = pytest.mark.xdist_group("pipeline")

T1W, FDG, FLAIR = MODALITIES["T1w"], MODALITIES["FDG"], MODALITIES["FLAIR"]
CONFIG = PreprocessConfig(spacing_mm=8, shape=(24, 28, 24), bias_field=False)


def rigid(angles, shift):
    points_map = np.eye(4)
    points_map[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    points_map[:3, 3] = shift
    return points_map


TARGET_TO_SOURCE = rigid((6, -4, 8), (14, -9, 20))
SOURCE_TO_TEMPLATE = rigid((-5, 3, 4), (4, 12, -8)) @ np.diag([1.08, 0.95, 1.04, 1.0])


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A source in LPS order and a blurred, noisy target of another contrast on another grid."""
    folder = tmp_path_factory.mktemp("head")
    image, mask = coarse_template()
    source_affine = np.diag([-3.0, -3.0, 3.0, 1.0])
    source_affine[:3, 3] = (105, 90, -100)
    # The template is symmetric, so a dark spot on the left marks the side.
    world = apply_affine(image.affine, np.argwhere(np.ones(image.array.shape)).astype(float))
    spot = (np.linalg.norm(world - (-40, -20, 30), axis=1) < 14).reshape(image.array.shape)
    image = replace(image, array=np.where(spot, 0.3, image.array).astype(np.float32))
    source = resample(image, source_affine, (70, 76, 66), SOURCE_TO_TEMPLATE)
    uptake = replace(image, array=np.exp(-(((image.array - 0.6) / 0.2) ** 2)) * (mask.array > 0))
    target_affine = centred_affine(np.array([0.0, -20.0, -10.0]), 4.0, (56, 60, 50))
    target = resample(uptake, target_affine, (56, 60, 50), SOURCE_TO_TEMPLATE @ TARGET_TO_SOURCE)
    target = gaussian_filter(target, 0.7) + np.random.default_rng(0).normal(0, 0.03, target.shape)
    write_volume(folder / "source.nii.gz", 900 * source, source_affine, codes=FormCodes(2, 1))
    write_volume(folder / "target.nii.gz", 5000 * target, target_affine, sidecar={"Units": "Bq/mL", "Patient": "Ada"})
    return folder


def threshold_mask(volume):
    """Replace the network, because the head is skull-stripped already."""
    mask = gaussian_filter(volume.array, 1) > 100
    return mask, measure_shape(mask, volume.affine)


@pytest.fixture(scope="module")
def pair(head):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "brain_mask", threshold_mask)
        return preprocess(head / "source.nii.gz", head / "target.nii.gz", T1W, FDG, CONFIG)


def preprocess(source, target, *settings, extra=None, mask=None):
    """Verify the files and preprocess them as a pair."""
    images = {name: verify_image(path) for name, path in (extra or {}).items()}
    target, mask = target and verify_image(target, skip_nan=True), mask and verify_image(mask)
    return pipeline.preprocess_pair(verify_image(source), target, *settings, extra=images, mask=mask)


def mean_error(estimated, true, world_points):
    return np.linalg.norm(
        apply_affine(np.array(estimated), world_points) - apply_affine(true, world_points), axis=1
    ).mean()


def test_registration_recovers_the_known_maps(pair):
    """The mean error over the brain is below 1 mm to the source, and below 2 mm to the template."""
    points = apply_affine(pair.source_volume.affine, np.argwhere(pair.native_mask)[::20].astype(float))
    at_target = apply_affine(np.linalg.inv(TARGET_TO_SOURCE), points)
    assert mean_error(pair.record["target_to_source"], TARGET_TO_SOURCE, at_target) < 1
    assert mean_error(pair.record["source_to_template"], SOURCE_TO_TEMPLATE, points) < 2
    quality = pair.record["quality"]["target_to_source"]
    moved = np.linalg.norm(at_target - points, axis=1).mean()
    assert quality["displacement_mm"] == pytest.approx(moved, abs=1)
    assert quality["overlap"] == 1


def test_registration_is_deterministic(head, pair):
    """Equal scans give bit-identical maps."""
    target = read_volume(head / "target.nii.gz")
    repeated = registration.register_rigid(target, pair.source_volume, pair.native_mask)
    assert repeated.points_map.tolist() == pair.record["target_to_source"]


def test_unrelated_scans_are_refused(head, pair):
    """A target of noise, and a target that does not cover the brain."""
    target = read_volume(head / "target.nii.gz")
    noise = replace(target, array=np.random.default_rng(1).normal(size=target.array.shape).astype(np.float32))
    with pytest.raises(RegistrationError, match="nats"):
        registration.register_rigid(noise, pair.source_volume, pair.native_mask)
    slab = replace(target, array=target.array[:, :, 20:34], affine=target.affine @ rigid((0, 0, 0), (0, 0, 20)))
    with pytest.raises(RegistrationError, match="of the brain"):
        registration.register_rigid(slab, pair.source_volume, pair.native_mask)


def test_the_model_grid_is_centred_on_the_templates_brain():
    """The default grid is RAS-aligned and isotropic, shares the centre of the brain's bounding box, and contains it."""
    config = PreprocessConfig()
    affine, shape = model_grid(config)
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_array_equal(affine[:3, :3], np.eye(3) * config.spacing_mm)
    brain = nilearn.datasets.load_mni152_brain_mask(resolution=1)
    points = apply_affine(brain.affine, np.argwhere(np.asarray(brain.dataobj) > 0).astype(float))
    centre = apply_affine(affine, (np.array([shape]) - 1) / 2)[0]
    np.testing.assert_allclose(centre, (points.min(axis=0) + points.max(axis=0)) / 2)
    index = apply_affine(np.linalg.inv(affine), points)
    assert index.min() > 0
    assert (index.max(axis=0) < np.array(shape) - 1).all()


def test_the_pair_is_normalised_and_masked(pair):
    """SUVR has mean 1 in the brain, both images are background outside, and the source is about 0 to 1."""
    assert pair.source.shape == pair.target.shape == pair.mask.shape == CONFIG.shape
    assert pair.source.dtype == pair.target.dtype == pair.target_native.dtype == np.float32
    assert pair.target[pair.mask].mean() == pytest.approx(1, abs=1e-5)
    assert (pair.target[~pair.mask] == 0).all()
    assert (pair.source[~pair.mask] == 0).all()
    assert (pair.target_native[~pair.native_mask] == 0).all()
    assert np.median(pair.source[pair.mask]) == pytest.approx(0.7, abs=0.25)
    assert pair.target_native[pair.native_mask].mean() == pytest.approx(1, abs=0.05)


def test_the_pair_is_aligned_with_the_template(pair):
    """On the model grid, the source correlates with the template, and left is left."""
    image, _ = coarse_template()
    affine, shape = model_grid(CONFIG)
    expected = resample(image, affine, shape)
    assert np.corrcoef(pair.source[pair.mask], expected[pair.mask])[0, 1] > 0.95
    left, right = (
        tuple(apply_affine(np.linalg.inv(affine), np.array([[side * 40.0, -20, 30]]))[0].round().astype(int))
        for side in (-1, 1)
    )
    assert pair.source[left] < 0.6 * pair.source[right]


def test_to_native_needs_only_the_json_record(pair):
    """A smooth image survives the model grid with r > 0.99 in the brain; voxels outside the grid are background."""
    record = json.loads(json.dumps(pair.record))
    source = pair.source_volume
    points = apply_affine(source.affine, np.argwhere(np.ones(source.array.shape)).astype(float))
    wave = np.cos(points @ (0.03, 0.05, -0.04)).reshape(source.array.shape).astype(np.float32)
    on_model = record_of.resample_to_grid(replace(source, array=wave), record, model_grid(CONFIG), world="source")
    back, affine = record_of.to_native(on_model, record, background=-7.0)
    np.testing.assert_array_equal(affine, source.affine)
    inside = pair.native_mask & (back != -7)
    assert inside.sum() > 0.99 * pair.native_mask.sum()
    assert np.corrcoef(back[inside], wave[inside])[0, 1] > 0.99
    assert (back == -7).any()


def test_images_in_target_space_are_resampled_like_the_target(head, pair):
    """The target itself gives the preprocessed target; an unknown space is refused."""
    target, grid = read_volume(head / "target.nii.gz"), model_grid(CONFIG)
    resampled = record_of.resample_to_grid(target, pair.record, grid, world="target")
    slope = pair.record["target"]["intensity"]["slope"]
    np.testing.assert_allclose(resampled[pair.mask] / slope, pair.target[pair.mask], rtol=1e-5)
    with pytest.raises(DataError, match="world"):
        record_of.resample_to_grid(target, pair.record, grid, world="moon")


def test_a_scan_without_target_gives_the_same_source(head, pair, monkeypatch):
    """The model's input does not depend on the presence of a target."""
    monkeypatch.setattr(pipeline, "brain_mask", threshold_mask)
    source_only = preprocess(head / "source.nii.gz", None, T1W, FDG, CONFIG)
    np.testing.assert_array_equal(source_only.source, pair.source)
    assert source_only.target is None
    assert source_only.target_native is None
    with pytest.raises(DataError, match="world"):
        record_of.resample_to_grid(source_only.source_volume, source_only.record, model_grid(CONFIG), world="target")


def test_a_mask_of_the_study_replaces_the_network(head, pair, tmp_path):
    """The same mask from a file gives the same images; the record has its origin but no run times."""
    file = tmp_path / "mask.nii.gz"
    write_volume(file, pair.native_mask, pair.source_volume.affine, dtype=np.uint8)
    masked = preprocess(head / "source.nii.gz", None, T1W, FDG, CONFIG, mask=file)
    np.testing.assert_array_equal(masked.source, pair.source)
    assert masked.record["brain_mask"] == {"file": "mask.nii.gz", "sha256": sha256(file)}
    assert pair.record["brain_mask"] == {"made_by": "deepbet"}
    assert masked.record["quality"] == {key: pair.record["quality"][key] for key in masked.record["quality"]}
    assert list(masked.clock.seconds) == ["read", "brain_mask", "bias_field", "template", "grid"]
    assert "seconds" not in json.dumps(masked.record)


def test_the_record_has_the_metrics_before_registration(pair):
    """Mutual information was lower in scanner coordinates; there is none with the template before registration."""
    quality = pair.record["quality"]
    registered = quality["target_to_source"]
    assert registered["mutual_information_nats"] > 2 * registered["before"]["mutual_information_nats"]
    assert quality["source_to_template"]["before"] is None
    assert all(least <= quality["brain_mask"][name] <= most for name, (_, least, most) in BOUNDS.items())


def test_a_turned_head_is_masked_again_upright(head, pair, tmp_path, monkeypatch):
    """The network gets the head upright at its second call, and the record has the angle of the turn."""
    source, axes = read_volume(head / "source.nii.gz"), []

    def mask_of(volume):
        axes.append("".join(nib.aff2axcodes(volume.affine)))
        return threshold_mask(volume)

    monkeypatch.setattr(pipeline, "brain_mask", mask_of)
    write_volume(tmp_path / "turned.nii.gz", source.array[:, ::-1, ::-1], source.affine)
    turned = preprocess(tmp_path / "turned.nii.gz", None, T1W, FDG, CONFIG)
    assert axes == ["LPS", "LAI"]
    assert turned.record["quality"]["source_to_template"]["rotation_deg"] == pytest.approx(180, abs=12)
    assert pair.record["quality"]["source_to_template"]["rotation_deg"] == pytest.approx(7, abs=3)
    assert np.corrcoef(turned.source[pair.mask], pair.source[pair.mask])[0, 1] > 0.98


def test_an_anatomical_target_needs_no_special_case(head, monkeypatch):
    """A FLAIR target is bias-corrected in its native space, and its white matter peaks at 0.5."""
    monkeypatch.setattr(pipeline, "brain_mask", threshold_mask)
    config = CONFIG.model_copy(update={"bias_field": True})
    pair = preprocess(head / "source.nii.gz", head / "target.nii.gz", T1W, FLAIR, config)
    intensity = pair.record["target"]["intensity"]
    assert intensity["normaliser"] == "white_matter"
    white = pipeline.reference_region("cerebral_white", pipeline.model_grid(config), pair.mask, pair.mask, head)
    assert np.median(pair.target[white.mask]) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def two_source_pair(head):
    """A pair with a further source: the same image serves as FLAIR and as target."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "brain_mask", threshold_mask)
        image = head / "target.nii.gz"
        return preprocess(head / "source.nii.gz", image, T1W, FDG, CONFIG, extra={"FLAIR": image})


def test_a_further_source_is_processed_like_a_target(two_source_pair, pair, head):
    """It is registered like a target and normalised by its modality; source and target do not change."""
    np.testing.assert_array_equal(two_source_pair.source, pair.source)
    np.testing.assert_array_equal(two_source_pair.target, pair.target)
    values, flair_record = two_source_pair.extra["FLAIR"].values, two_source_pair.record["extra_sources"]["FLAIR"]
    assert flair_record["to_source"] == pair.record["target_to_source"]
    assert flair_record["file"] == "target.nii.gz"
    assert flair_record["intensity"]["normaliser"] == "robust"
    assert two_source_pair.record["quality"]["FLAIR_to_source"] == pair.record["quality"]["target_to_source"]
    assert two_source_pair.record.keys() == pair.record.keys()
    assert (values[~pair.mask] == 0).all()
    assert np.corrcoef(values[pair.mask], pair.target[pair.mask])[0, 1] > 0.99
    volume, record = read_volume(head / "target.nii.gz"), json.loads(json.dumps(two_source_pair.record))
    resampled = [
        record_of.resample_to_grid(volume, record, model_grid(CONFIG), world=world) for world in ("FLAIR", "target")
    ]
    np.testing.assert_array_equal(*resampled)


def test_aligned_images_are_measured_but_not_moved(head, pair, tmp_path, monkeypatch):
    """With `aligned`, maps are exact identities, and an image without mutual information is refused."""
    monkeypatch.setattr(pipeline, "brain_mask", threshold_mask)
    config = CONFIG.model_copy(update={"aligned": True})
    aligned_file, noise = tmp_path / "aligned.nii.gz", tmp_path / "noise.nii.gz"
    aligned = resample(pair.target_volume, *pair.source_volume.grid, np.linalg.inv(TARGET_TO_SOURCE))
    write_volume(aligned_file, aligned, pair.source_volume.affine)
    write_volume(noise, np.random.default_rng(0).random(aligned.shape), pair.source_volume.affine)
    source = head / "source.nii.gz"
    unmoved = preprocess(source, aligned_file, T1W, FDG, config, extra={"FLAIR": aligned_file})
    maps = [unmoved.record["target_to_source"], unmoved.record["extra_sources"]["FLAIR"]["to_source"]]
    assert maps == [np.eye(4).tolist()] * 2
    for name in ("target_to_source", "FLAIR_to_source"):
        quality, registered = unmoved.record["quality"][name], pair.record["quality"]["target_to_source"]
        assert quality["displacement_mm"] == 0
        assert quality["mutual_information_nats"] > 0.5 * registered["mutual_information_nats"]
    assert np.corrcoef(unmoved.target[pair.mask], pair.target[pair.mask])[0, 1] > 0.95
    with pytest.raises(RegistrationError, match=r"noise\.nii\.gz: aligned with source\.nii\.gz they share"):
        preprocess(source, noise, T1W, FDG, config)


def test_a_further_source_is_written(two_source_pair, tmp_path):
    """Volume and sidecar are in the layout's files."""
    layout, scan = Layout(tmp_path), Scan("01")
    files = outputs.write_pair(two_source_pair, layout, scan, T1W, FDG)
    assert files["FLAIR"] == layout.on_grid(scan, FLAIR)
    np.testing.assert_array_equal(read_volume(files["FLAIR"]).array, two_source_pair.extra["FLAIR"].values)
    sidecar = json.loads(sidecar_path(files["FLAIR"]).read_text())
    assert sidecar["Intensity"] == two_source_pair.record["extra_sources"]["FLAIR"]["intensity"]
    assert sidecar["SpatialReference"] == json.loads(files["record"].read_text())["SpatialReference"]
    # All of the files are known, so that those of a scan that fails can be removed.
    study = StudyConfig(name="t", extra_sources=("FLAIR",))
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(preprocessing_files(layout, scan, study))


def test_outputs_of_a_pair_are_written(pair, tmp_path):
    """Every output reads back, the record is the source's sidecar, and no folder or private tag leaks."""
    layout, scan = Layout(tmp_path), Scan("01", "02")
    files = outputs.write_pair(pair, layout, scan, T1W, FDG)
    assert files["record"] == layout.record(scan, T1W)
    record = json.loads(files["record"].read_text())
    assert record.items() >= json.loads(json.dumps(pair.record)).items()
    assert record["SkullStripped"] is True
    assert record["target"]["acquisition"] == {"Units": "Bq/mL"}
    assert record["source"]["file"] == "source.nii.gz"
    assert "Ada" not in files["record"].read_text()
    np.testing.assert_array_equal(read_volume(layout.on_grid(scan, FDG)).array, pair.target)
    np.testing.assert_array_equal(read_volume(layout.mask_native(scan, T1W)).array > 0, pair.native_mask)
    native = read_volume(layout.target_native(scan, T1W, FDG))
    np.testing.assert_allclose(native.affine, pair.source_volume.affine, atol=1e-4)
    np.testing.assert_array_equal(native.array, pair.target_native)
    for file in (layout.mask_native(scan, T1W), layout.target_native(scan, T1W, FDG)):
        header = nib.load(file).header
        assert (header["qform_code"], header["sform_code"]) == (2, 1)
    for file in (layout.mask_native(scan, T1W), layout.mask_on_grid(scan, T1W)):
        mask = json.loads(sidecar_path(file).read_text())
        assert mask["Type"] == "Brain"
        assert "desc-preproc" not in str(mask.get("Sources"))
    assert json.loads(layout.on_grid(scan, FDG).with_suffix("").with_suffix(".json").read_text())["TracerName"] == "FDG"
    assert files["figure"].read_bytes().startswith(b"\xff\xd8")
    before = {name: file.read_bytes() for name, file in files.items()}
    outputs.write_pair(pair, layout, scan, T1W, FDG)
    assert before == {name: file.read_bytes() for name, file in files.items()}


def test_a_series_is_averaged_and_scaled_by_its_reference_region(head, pair, tmp_path, monkeypatch):
    """The mean of the window is 1 in the part of the cerebellum that the field of view contains."""
    monkeypatch.setattr(pipeline, "brain_mask", threshold_mask)
    target = read_volume(head / "target.nii.gz")
    first = 14  # a quarter of the cerebellum and 5 % of the brain lie below this slice
    affine = target.affine @ rigid((0, 0, 0), (0, 0, first))
    frames = np.stack([target.array.max() - target.array, target.array])[..., first:]
    times = {"InjectionStart": 0, "FrameTimesStart": [0, 600], "FrameDuration": [600, 600], "Units": "BQML"}
    path = save_pet(tmp_path / "series.nii.gz", frames, affine, **times)
    options = {"pet_window_s": (600, 1200), "reference_region": "cerebellum"}
    config = CONFIG.model_copy(update=options)
    averaged = preprocess(head / "source.nii.gz", path, T1W, FDG, config)
    region, grid = reference_mask("cerebellum", model_grid(config)), model_grid(config)
    field = replace(target, array=np.ones_like(frames[0]), affine=affine)
    in_view = record_of.resample_to_grid(field, averaged.record, grid, world="target") > 0
    used = region & averaged.mask & in_view
    assert 20 <= used.sum() < (region & averaged.mask).sum()
    assert averaged.target[used].mean() == pytest.approx(1, abs=1e-5)
    intensity = averaged.record["target"]["intensity"]
    assert intensity["reference_value"] == intensity["slope"]
    assert (intensity["reference_region"], intensity["reference_unit"]) == ("cerebellum", "Bq/mL")
    assert intensity["reference_voxels"] == used.sum()
    assert intensity["reference_shown"] == pytest.approx(used.sum() / (region & averaged.mask).sum(), abs=1e-4)
    assert averaged.record["target"]["pet"]["seconds_by_frame"] == {"1": 600}
    assert np.corrcoef(averaged.target[pair.mask & in_view], pair.target[pair.mask & in_view])[0, 1] > 0.97
    assert json.loads(json.dumps(averaged.record)) == averaged.record


def test_slices_that_are_padded_are_not_in_view(head, pair, tmp_path, monkeypatch):
    """They do not dilute the reference region, and lower its shown share and the coverage; NaN is the same as 0."""
    monkeypatch.setattr(pipeline, "brain_mask", threshold_mask)
    volume = replace(pair.target_volume, array=100 + np.abs(pair.target_volume.array))
    array = volume.array.copy()
    array[..., :18] = 0
    config = CONFIG.model_copy(update={"reference_region": "cerebellum"})
    whole, padded = tmp_path / "whole.nii.gz", tmp_path / "padded.nii.gz"
    write_volume(whole, volume.array, volume.affine)
    write_volume(padded, array, volume.affine)
    measured, cut = (preprocess(head / "source.nii.gz", path, T1W, FDG, config) for path in (whole, padded))
    shown = in_view(cut.target, cut.mask)
    assert 0.8 < shown.sum() / cut.mask.sum() < 0.98
    used = reference_mask("cerebellum", model_grid(config)) & shown
    assert cut.target[used].mean() == pytest.approx(1, abs=1e-5)
    shares, coverages = (
        [one.record["target"]["intensity"]["reference_shown"] for one in (measured, cut)],
        [one.record["quality"]["target_to_source"]["overlap"] for one in (measured, cut)],
    )
    assert shares[0] == 1
    assert shares[1] < 0.95
    assert coverages[0] > 0.99
    assert coverages[1] == pytest.approx(shown.sum() / cut.mask.sum(), abs=0.01)
    array[..., :18] = np.nan
    nib.save(nib.Nifti1Image(array, volume.affine), tmp_path / "nan.nii.gz")
    empty = preprocess(head / "source.nii.gz", tmp_path / "nan.nii.gz", T1W, FDG, config)
    np.testing.assert_array_equal(empty.target, cut.target)
    np.testing.assert_array_equal(empty.target_native, cut.target_native)


def test_blood_flow_beyond_the_field_of_view_is_not_measured(head, pair, tmp_path, monkeypatch):
    """Its scale has another zero than 0, and the voxels out of view are marked on both grids all the same."""
    monkeypatch.setattr(pipeline, "brain_mask", threshold_mask)
    flow, first = replace(pair.target_volume, array=100 + np.abs(pair.target_volume.array)), 14
    affine = flow.affine @ rigid((0, 0, 0), (0, 0, first))
    write_volume(tmp_path / "cbf.nii.gz", flow.array[..., first:], affine)
    cut = preprocess(head / "source.nii.gz", tmp_path / "cbf.nii.gz", T1W, MODALITIES["CBF"], CONFIG)
    assert cut.record["target"]["intensity"]["intercept"] > 0
    coverage = cut.record["quality"]["target_to_source"]["overlap"]
    assert coverage < 0.97
    for values, mask in ((cut.target, cut.mask), (cut.target_native, cut.native_mask)):
        assert in_view(values, mask).sum() / mask.sum() == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize(
    ("spacing", "words"), [((1.0, 1.0, 1.0), "ml"), ((9.0, 9.0, 9.0), "ml"), ((8.0, 2.2, 2.0), "mm along")]
)
def test_an_implausible_mask_is_refused(spacing, words):
    """A ball that is too small, too large, or stretched."""
    index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"))
    ball = ((index - 19.5) ** 2).sum(axis=0) < 18.0**2
    with pytest.raises(IntensityError, match=words):
        masks.check_mask(ball, Volume(ball.astype(np.float32), np.diag([*spacing, 1.0])))


@pytest.mark.slow
def test_the_network_masks_the_template_in_any_orientation():
    """The Dice coefficient with the template's mask exceeds 0.9, and a reoriented image has the reoriented mask."""
    image, mask = coarse_template()
    estimated = masks.brain_mask(image)[0]
    assert 2 * (estimated & (mask.array > 0)).sum() / (estimated.sum() + mask.array.sum()) > 0.9
    rotated = nib.as_closest_canonical(nib.Nifti1Image(image.array, image.affine)).slicer[::-1, ::-1]
    permuted = Volume(np.asarray(rotated.dataobj).transpose(2, 0, 1), rotated.affine[:, [2, 0, 1, 3]])
    permuted_mask = masks.brain_mask(permuted)[0]
    np.testing.assert_array_equal(permuted_mask.transpose(1, 2, 0)[::-1, ::-1], estimated)
