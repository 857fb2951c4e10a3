"""A study with two sources, from preprocessed volumes to the report: FDG from T1w and FLAIR of eight phantoms.

The commands run in this process on phantoms, so preprocessing and Snakemake are not needed.
"""

from __future__ import annotations

import json
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from dualflow.commands import evaluate as scoring
from dualflow.commands import report as reporting
from dualflow.commands import train as training
from dualflow.commands.ceilings import evaluate_ceilings
from dualflow.commands.convert_study import convert
from dualflow.commands.evaluate import evaluate
from dualflow.config import parse_config
from dualflow.data.quarantine import write_quarantine
from dualflow.data.tsv import table_text
from dualflow.imaging.affines import MNI
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.volume import write_volume
from dualflow.inference.predict import load_predictor
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.modalities import MODALITIES
from dualflow.models.store import load_card
from dualflow.tracking.tracked_run import Run

# One worker trains the models once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two sources")]

T1W, FLAIR, FDG = (MODALITIES[name] for name in ("T1w", "FLAIR", "FDG"))
OPTIONS = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "low_rank": 2}
STUDY = {
    "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
    "model": {"preset": "dualflow", "options": OPTIONS},
    "extra_models": {"full_glow": {"preset": "full_glow", "options": {"steps": [1, 1, 1], "hidden": [8, 8, 8]}}},
    "train": {"steps": 4, "validate_every": 2, "precision": "float32"},
    "baselines": {"steps": 2},
    "convert": {"samples": 2, "keep_samples": 1},
    "evaluate": {"bootstrap": 100, "samples": 4, "background_draws": 1, "background_steps": 2, "stress": 16},
}
TEMPLATE = {"mutual_information_nats": 0.6, "overlap": 0.95, "rotation_deg": 5.0}
QUALITY = {"brain_ml": 1400.0, "brain_mask": {}, "source_to_template": TEMPLATE}
SPLITS = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2


def two_sources(item):
    """Return the phantom's volumes with a second source that the target depends on, and the mask."""
    rng = np.random.default_rng(int(item["scan"].removeprefix("sub-")))
    inside = item["mask"].numpy()
    flair = np.where(inside, 0.5 + 0.2 * rng.normal(size=inside.shape), 0).astype(np.float32)
    target = item["target"].numpy() + np.where(inside, flair - 0.5, 0).astype(np.float32)
    return {"T1w": item["source"].numpy()[0], "FLAIR": flair[0], "FDG": target[0]}, inside[0]


@pytest.fixture(scope="module")
def config(tmp_path_factory, phantoms, held_out):
    """A study that starts at its preprocessed volumes: trained, scored, converted and reported."""
    root = tmp_path_factory.mktemp("study")
    study = {"name": "two", "results": str(root), "bids": str(root), "extra_sources": ["FLAIR"], "side": ["age"]}
    config = parse_config({"study": study, **STUDY})
    items = [*phantoms.items, *held_out.items]
    for item in items:
        write_preprocessed(config, item)
    rows = [(item["scan"], item["scan"].removeprefix("sub-"), None, f"{item['scan']}.nii", "fdg") for item in items]
    pairs = pd.DataFrame(rows, columns=["scan", "subject", "session", "source", "target"])
    ages = [70 + 8 * float(item["side"]) for item in items]
    path = config.layout.pairs
    path.parent.mkdir(parents=True)
    path.write_text(table_text(pairs.assign(split=SPLITS, source_FLAIR="flair", age=ages)))
    write_quarantine(config.layout.quarantine, [])
    config.layout.quality.write_text("scan\tflags\n")
    config.layout.splits.write_text("subject\tfold\tsplit\n")
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((training, "model_run"), (scoring, "model_run"), (reporting, "group_run")):
            patch.setattr(module, name, lambda *_, **__: nullcontext(Run()))
        for name, seed in config.trainings:
            training.train(config, [name], seed)
            evaluate(config, [name], seed)
        evaluate_ceilings(config)
        convert(config, "dualflow", 0)
        reporting.report(config)
    return config


def write_preprocessed(config, item):
    """Write the outputs and the manifest of a preprocessed scan."""
    layout, scan, (affine, shape) = config.layout, Scan.parse(item["scan"]), model_grid(config.preprocess)
    volumes, mask = two_sources(item)
    grid = {"affine": affine.tolist(), "shape": list(shape)}
    record = {"grid": grid, "native_grid": grid, "source_to_template": np.eye(4).tolist()}
    roles = {"source": "T1w", "FLAIR": "FLAIR", "target": "FDG"}
    files = {role: layout.on_grid(scan, MODALITIES[modality]) for role, modality in roles.items()}
    record |= {"source": {"file": "t1w.nii", "sha256": "0"}, "quality": QUALITY}
    write_volume(config.bids / f"{scan.key}.nii", volumes["T1w"], affine)
    for role, modality in roles.items():
        sidecar = record if modality == "T1w" else {}
        write_volume(files[role], volumes[modality], affine, codes=MNI, sidecar=sidecar)
    for role in ("source", "FLAIR"):
        files[f"{role}_detail"] = layout.detail(scan, MODALITIES[roles[role]])
        write_volume(files[f"{role}_detail"], np.zeros(shape, np.float32), affine)
    files |= {"mask": layout.mask_on_grid(scan, T1W), "mask_native": layout.mask_native(scan, T1W)}
    for name in ("mask", "mask_native"):
        write_volume(files[name], mask, affine, dtype=np.uint8)
    files["record"] = layout.record(scan, T1W)
    write_manifest(layout.scan_manifest(scan), step="preprocess", outputs=files, inputs={}, config={})


def test_cards_name_the_sources_and_models_read_all_of_them(config, held_out):
    """A loaded model predicts another image when the FLAIR changes, except for the mean image."""
    volumes, _ = two_sources(held_out[0])
    source = torch.tensor(np.stack([volumes["T1w"], volumes["FLAIR"]]))
    flipped = torch.stack([source[0], source[1].flip(0) * held_out[0]["mask"][0]])
    for name, seed in config.trainings:
        folder = config.layout.model(name, seed)
        assert load_card(folder).study.extra_sources == ("FLAIR",)
        predict, mask = load_predictor(folder).predict, held_out[0]["mask"]
        side = held_out[0]["side"]
        first, second = (predict(image, side, mask, samples=2, temperature=1.0, seed=0) for image in (source, flipped))
        assert np.isfinite(first.mean).all()
        assert (not np.array_equal(first.mean, second.mean)) == (name != "mean_image")


def test_every_model_is_scored(config):
    """Image errors, densities and stress tests are finite for both test subjects."""
    for name, seed in config.trainings:
        scores = pd.read_csv(config.layout.table(f"scans_{name}_seed-{seed}"), sep="\t")
        assert scores["scan"].tolist() == ["sub-07", "sub-08"]
        columns = ["mae", "psnr"]
        if name in config.flows:
            columns += ["nll_true", "nll_wrong", "nll_blurred", "bits_in_mask", "round_trip_float32"]
            assert (scores["nll_true"] != scores["nll_wrong"]).all()
            stress = pd.read_csv(config.layout.stress(name, seed), sep="\t")
            assert not stress["nonfinite_voxels"].any()
        assert np.isfinite(scores[columns]).all(axis=None)


def test_test_scans_are_converted(config):
    """Point estimate, standard deviation and sample lie on the native grid of the main source."""
    for scan in (Scan("07"), Scan("08")):
        for desc in ("synth", "synthstd", "synth01"):
            image = nib.load(config.layout.synthetic(scan, T1W, FDG, desc))
            assert image.shape == (16, 16, 16)
            assert np.abs(image.get_fdata()).max() > 0
        sidecar = config.layout.synthetic(scan, T1W, FDG, "synth").with_suffix("").with_suffix(".json")
        assert json.loads(sidecar.read_text())["Units"] == "SUVR"


def test_the_report_names_the_sources(config):
    """The title has both sources, and the methods describe their registration."""
    page = config.layout.report.read_text()
    assert "T1w + FLAIR to FDG" in page
    assert "each target and further source is registered rigidly to its source" in page
