"""Conversion to volumes on the native grid of the source scan."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SHAPE

from dualflow.baselines import BASELINES
from dualflow.commit import commit_bytes, commit_json, commit_text
from dualflow.config import ConvertConfig
from dualflow.imaging.regions import RegionMap
from dualflow.imaging.volume import read_volume
from dualflow.inference import convert as convert_module
from dualflow.inference.convert import Converter, nearest_inside, scan_seed, volumes_of
from dualflow.inference.predict import Prediction, load_predictor
from dualflow.inference.verdict import Finding, Outcome, Verdict
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.manifest import read_manifest
from dualflow.modalities import MODALITIES
from dualflow.models.card import ConstantSpread
from dualflow.models.store import save_model

T1W, FDG = MODALITIES["T1w"], MODALITIES["FDG"]
GRID = np.array([[4.0, 0, 0, -30], [0, 4, 0, -30], [0, 0, 4, -30], [0, 0, 0, 1]])
# Oblique, left-handed, and finer than the model grid.
NATIVE = np.array([[0.0, 1.5, 2.4, -35], [-2.0, 0, 0, 32], [0, 2.0, -1.8, -5], [0, 0, 0, 1]])
NATIVE_SHAPE = (32, 20, 20)
CONFIG = ConvertConfig(samples=3, keep_samples=2, seed=1)


@pytest.fixture
def preprocessed(tmp_path, model_folder, phantoms):
    """A converter, the first phantom, its record with an offset to the template, and its native brain mask."""
    predictor, item = load_predictor(model_folder), phantoms[0]
    to_template = np.eye(4)
    to_template[:3, 3] = (1.5, -2, 0.5)
    record = {
        "grid": {"affine": GRID.tolist(), "shape": list(item["source"].shape[1:])},
        "native_grid": {"affine": NATIVE.tolist(), "shape": list(NATIVE_SHAPE)},
        "source_to_template": to_template.tolist(),
    }
    points = np.moveaxis(np.indices(NATIVE_SHAPE), 0, -1) @ NATIVE[:3, :3].T + NATIVE[:3, 3]
    brain = np.linalg.norm(points, axis=-1) < 20
    record |= {"source": {"file": "t1.nii.gz", "sha256": "0"}, "quality": {}}
    layout, mask = Layout(tmp_path, "."), item["mask"][0].numpy()
    regions = RegionMap(mask.astype(np.int32), ("ctx-lh-cuneus",), (4.0, 4.0, 4.0))
    return Converter(predictor, None, regions, layout, T1W, FDG, CONFIG), item, record, brain


@pytest.fixture
def convert(preprocessed):
    """A function that converts the phantom and returns its files; its brain mask; the predictor."""
    plain, item, record, brain = preprocessed
    mask = item["mask"][0].numpy()

    def run(config=CONFIG, side=71.0, verdict=Verdict()):  # noqa: B008
        converter = replace(plain, config=config)
        prediction = converter._predict(item)
        return converter._write(Scan("01"), prediction, verdict, mask, record, brain, {"age": side})[0]

    return run, brain, plain.predictor


@pytest.fixture
def convert_item(preprocessed, monkeypatch):
    """A function that converts the preprocessed phantom as a whole, with a raw source that does not exist."""
    converter, item, record, brain = preprocessed
    scan = SimpleNamespace(record=lambda: record, volume=lambda _: SimpleNamespace(array=brain.astype(np.float32)))
    monkeypatch.setattr(convert_module, "PreprocessedScan", SimpleNamespace(from_manifest=lambda *_: scan))
    commit_json(converter.layout.scan_manifest(Scan("01")), {})
    raw = converter.layout.root / "raw" / "t1.nii.gz"
    return lambda: converter.convert_if_needed(item | {"scan": "sub-01"}, {"age": 71.0}, raw), converter.layout


def test_volumes_have_the_native_grid_and_end_at_the_brain(convert):
    """Point estimate, mean, standard deviation and kept samples have the source's affine and shape, and sidecars."""
    run, brain, _ = convert
    files = run()
    assert set(files) == {"synth", "synthmean", "synthstd", "synth01", "synth02", "regions"}
    regions = json.loads(sidecar_path(files.pop("regions")).read_text())
    assert regions["Synthetic"] is True
    assert "samples" in regions["sd"]["Description"]
    for desc, path in files.items():
        assert path.name == f"sub-01_trc-FDG_space-T1w_desc-{desc}_pet.nii.gz"
        image = nib.load(path)
        assert image.shape == NATIVE_SHAPE
        np.testing.assert_allclose(image.affine, NATIVE, atol=1e-5)
        voxels = image.get_fdata()
        assert np.isfinite(voxels).all()
        assert not voxels[~brain].any()
        # The edge of the brain is not darkened by zeros outside the mask.
        assert (np.abs(voxels[brain]) > 0).all()
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Synthetic"] is True
        assert sidecar["Units"] == "SUVR"
        assert sidecar["SyntheticModel"]["weights_sha256"]
        assert sidecar["SyntheticModel"] == regions["SyntheticModel"]
        assert sidecar["SideInformation"] == {"age": 71.0}
        assert sidecar["Verdict"]["verdict"] == "ok"
        assert sidecar["Sampling"]["samples"] == CONFIG.samples
    volumes = {desc: read_volume(path).array for desc, path in files.items()}
    assert not np.array_equal(volumes["synth01"], volumes["synth02"])


def test_values_are_those_of_the_model_grid_at_the_mapped_points(convert, phantoms):
    """A voxel equals the trilinear interpolation of the prediction at its world point in template space."""
    run, brain, predictor = convert
    item = phantoms[0]
    converted = read_volume(run()["synth"]).array
    mean = predictor.predict(
        item["source"], item["side"], item["mask"], samples=3, temperature=1.0, seed=scan_seed(1, Scan("01"))
    ).mean
    for index in np.argwhere(brain)[::97]:
        world = NATIVE[:3, :3] @ index + NATIVE[:3, 3] + (1.5, -2, 0.5)
        position = (world - GRID[:3, 3]) / 4
        low = np.floor(position).astype(int)
        corner = mean[nearest_inside(item["mask"][0].numpy())][tuple(slice(edge, edge + 2) for edge in low)]
        weights = position - low
        for weight in weights:
            corner = (1 - weight) * corner[0] + weight * corner[1]
        assert converted[tuple(index)] == pytest.approx(corner, abs=1e-4)


@pytest.mark.parametrize("spread", [ConstantSpread(voxel=0.25, region=0.125, regions=1), None])
def test_the_spread_of_a_model_without_samples_is_its_error(preprocessed, tmp_path, card, phantoms, spread):
    """Sidecars speak of no samples; an unknown spread is not written as a volume of zeros, and the picture lacks it."""
    plain, _, record, brain = preprocessed
    model = BASELINES["mean_image"](card.shape, 1)
    model.fit(phantoms)
    changes = {"kind": "mean_image", "spec": None, "constant_spread": spread}
    save_model(tmp_path / "model", model, card.model_copy(update=changes))
    converter, item = replace(plain, predictor=load_predictor(tmp_path / "model")), phantoms[0]
    prediction, mask = converter._predict(item), item["mask"][0].numpy()
    files, images = converter._write(Scan("01"), prediction, Verdict(), mask, record, brain, {"age": 71.0})
    assert set(files) == {"synth", "regions"} | ({"synthstd"} if spread else set())
    sidecars = {name: json.loads(sidecar_path(path).read_text()) for name, path in files.items()}
    assert not any("Sampling" in sidecar for sidecar in sidecars.values())
    spreads = [sidecars["regions"]["sd"], *([sidecars["synthstd"]] if spread else [])]
    for entry in spreads:
        assert "samples" not in entry["Description"]
        assert "error" in entry["Description"]
        assert entry["Units"] == "SUVR"
    nib.save(nib.Nifti1Image(brain.astype(np.float32), NATIVE), tmp_path / "t1.nii")
    assert converter._draw(Scan("01"), tmp_path / "t1.nii", Verdict(), images, record, brain).is_file()


def test_the_same_scan_gives_the_same_bytes(convert):
    """Conversion is reproducible; another seed gives other samples and the same point estimate."""
    run, _, _ = convert
    before = {desc: path.read_bytes() for desc, path in run().items()}
    assert {desc: path.read_bytes() for desc, path in run().items()} == before
    reseeded = {desc: path.read_bytes() for desc, path in run(CONFIG.model_copy(update={"seed": 2})).items()}
    assert [desc for desc in before if before[desc] == reseeded[desc]] == ["synth"]


def test_quantile_maps_are_those_of_all_samples(convert):
    """They are ordered, and the median of three samples is one of them."""
    run, brain, _ = convert
    files = run(CONFIG.model_copy(update={"quantiles": True}))
    low, median, high = (read_volume(files[f"synthq{percentile}"]).array[brain] for percentile in ("05", "50", "95"))
    assert (low <= median).all()
    assert (median <= high).all()
    assert (low < high).any()
    assert set(files) >= {"synth01", "synth02"}
    assert "synth03" not in files


def test_nine_of_ten_values_lie_between_the_outer_quantile_maps():
    """Values that follow the samples' law, with the default number of samples."""
    samples, truth = np.split(np.random.default_rng(0).normal(size=(33, 30, 30, 30)).astype(np.float32), [32])
    prediction = Prediction(truth[0], truth[0], samples, sample_mean=truth[0])
    volumes = volumes_of(prediction, ConvertConfig(quantiles=True))
    inside = (volumes["synthq05"] < truth[0]) & (truth[0] < volumes["synthq95"])
    assert inside.mean() == pytest.approx(0.9, abs=0.015)


def test_a_map_of_deviations_is_written_for_a_flagged_scan(convert):
    """Each source has one; it lies on the native grid, and the sidecars of all volumes have the verdict."""
    run, brain, _ = convert
    maps = {name: np.full(SHAPE, value, np.float32) for name, value in (("T1w", 3), ("FLAIR", -7))}
    files = run(verdict=Verdict((Finding(Outcome.REVIEW, "odd"),), {}, maps))
    for name, image in maps.items():
        file = files[f"deviation_{name}"]
        assert file.name == f"sub-01_space-T1w_desc-deviation_{name}.nii.gz"
        written = nib.load(file).get_fdata()
        assert written.shape == NATIVE_SHAPE
        assert np.allclose(written[brain], image.flat[0])
        assert name in json.loads(sidecar_path(file).read_text())["Description"]
    sidecar = json.loads(files["synth"].with_name(files["synth"].name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Verdict"] == {"verdict": "review", "reasons": ["odd"], "figures": {}}


def test_a_scan_whose_raw_source_is_away_is_converted_without_a_picture(convert_item, capsys):
    """The picture is optional, and an earlier one does not stay."""
    run, layout = convert_item
    picture = layout.figure(Scan("01"), "synth")
    commit_text(picture, "earlier")
    outputs = read_manifest(run())["outputs"]
    assert {"synth", "synthstd", "regions"} <= set(outputs)
    assert "figure" not in outputs
    assert not picture.exists()
    warning = capsys.readouterr().err
    assert warning.startswith("warning: sub-01: converted without a picture: t1.nii.gz: ")
    assert str(layout.root) not in warning


def test_the_picture_shows_a_pet_with_nan(preprocessed, tmp_path):
    """A PET that is the source is drawn as preprocessing read it."""
    plain, _, record, brain = preprocessed
    converter = replace(plain, source=FDG)
    voxels = np.where(np.indices(NATIVE_SHAPE)[2] < 3, np.nan, brain + 1.0).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, NATIVE), tmp_path / "pet.nii")
    volumes = {name: brain.astype(np.float32) for name in ("synth", "synthstd")}
    picture = converter._draw(Scan("01"), tmp_path / "pet.nii", Verdict(), volumes, record, brain)
    assert picture.is_file()


def test_a_conversion_that_fails_leaves_no_file(convert_item, monkeypatch):
    """Neither its volumes stay, which no manifest lists, nor the manifest of the conversion before."""
    run, layout = convert_item
    manifest = run()
    commit_json(layout.scan_manifest(Scan("01")), {"preprocessed": "again"})

    def fail(*_):
        assert layout.synthetic(Scan("01"), T1W, FDG, "synth").is_file()
        raise ValueError("odd")

    monkeypatch.setattr(Converter, "_draw", fail)
    with pytest.raises(ValueError, match="odd"):
        run()
    assert not manifest.exists()
    assert not list(layout.root.rglob("*synth*"))


def test_a_refused_scan_loses_the_files_of_an_unfinished_conversion(convert_item, monkeypatch):
    """No manifest lists them, because the process ended first."""
    run, layout = convert_item
    unfinished = layout.synthetic(Scan("01"), T1W, FDG, "synth07")
    commit_bytes(unfinished, gzip.compress(b"voxels"))
    monkeypatch.setattr(convert_module, "judge_input", lambda *_: Verdict((Finding(Outcome.REFUSED, "unlike"),)))
    assert read_manifest(run())["outputs"] == {}
    assert not unfinished.exists()


def test_each_source_is_judged_under_its_own_name(preprocessed, convert_item, monkeypatch):
    """Of the sources and details of a scan, in the order of the model's card."""
    plain, item, _, _ = preprocessed
    card = plain.predictor.card
    card = card.model_copy(update={"study": card.study.model_copy(update={"extra_sources": ("FLAIR",)})})
    converter, judged = replace(plain, predictor=SimpleNamespace(card=card)), {}

    def judge(reference, encoder, sources, *_):
        judged.update(sources)
        return Verdict((Finding(Outcome.REFUSED, "unlike"),))

    monkeypatch.setattr(convert_module, "judge_input", judge)
    images = torch.stack([torch.full(SHAPE, value) for value in (1.0, 2.0, 3.0, 4.0)])
    converter.convert_if_needed(item | {"scan": "sub-01", "source": images}, {"age": 71.0}, Path("t1.nii.gz"))
    assert {name: image.mean() for name, image in judged.items()} == {"T1w": 1, "FLAIR": 2}


def test_every_scan_has_its_own_seed():
    """Seeds depend on the configured seed, subject and session."""
    seeds = {scan_seed(seed, Scan(subject, session)) for seed in (0, 1) for subject in "ab" for session in (None, "1")}
    assert len(seeds) == 8
    assert scan_seed(3, Scan("a")) == scan_seed(3, Scan("a"))


def test_an_unknown_side_value_is_null_in_the_sidecar(convert):
    """JSON has no NaN."""
    run, _, _ = convert
    path = run(side=float("nan"))["synth"]
    assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["SideInformation"] == {
        "age": None
    }


def test_voxels_outside_take_the_nearest_value_inside():
    """An empty mask leaves the volume unchanged."""
    volume, mask = np.zeros((1, 1, 6), np.float32), np.zeros((1, 1, 6), bool)
    volume[0, 0], mask[0, 0, 1:3] = range(10, 16), True
    assert volume[nearest_inside(mask)][0, 0].tolist() == [11, 11, 12, 12, 12, 12]
    np.testing.assert_array_equal(volume[nearest_inside(np.zeros_like(mask))], volume)
