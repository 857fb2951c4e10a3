"""Scores on the grid of the source scan."""

import numpy as np
import pytest

from dualflow.config import parse_config
from dualflow.evaluation.native import native_scores
from dualflow.imaging.intensity import INSIDE, in_view
from dualflow.imaging.volume import write_volume
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.modalities import MODALITIES


def test_conversions_are_scored_on_the_native_grid_inside_the_mask(tmp_path):
    """Errors are those of the converted volume; voxels outside the mask or the field of view count not."""
    config = parse_config({"study": {"name": "x", "results": str(tmp_path), "side": ["age"]}})
    layout, affine, scan = config.layout, np.diag([1.0, 1.2, 1.5, 1.0]), Scan("1", "2")
    rows = MODALITIES["T1w"], MODALITIES["FDG"]
    mask = np.zeros((7, 8, 9), np.float32)
    mask[2:5, 2:6, 2:7] = 1
    real = np.where(mask > 0, np.random.default_rng(0).uniform(0.5, 1.5, mask.shape), 0).astype(np.float32)
    real[:, :, 2] = np.where(mask[:, :, 2] > 0, INSIDE, 0)  # below the field of view of the PET
    for key in (scan, Scan("3")):
        paths = {"mask_native": layout.mask_native(key, rows[0]), "target_native": layout.target_native(key, *rows)}
        write_volume(paths["mask_native"], mask, affine)
        write_volume(paths["target_native"], real, affine)
        write_manifest(layout.scan_manifest(key), step="preprocess", outputs=paths, inputs={}, config={})
    write_volume(layout.synthetic(scan, *rows, "synth"), real + np.where(in_view(real, mask > 0), 0.1, 9.0), affine)
    table = native_scores(config, [scan.key, "sub-3", "sub-4"])
    assert table[["model", "seed", "scan"]].to_numpy().tolist() == [["dualflow", 0, "sub-1_ses-2"]]
    low, high = rows[1].window
    expected = {"mae": 0.1, "rmse": 0.1, "psnr": 20 * np.log10((high - low) / 0.1), "pearson_r": 1.0}
    assert table.iloc[0].drop(["model", "seed", "scan"]).to_dict() == pytest.approx(expected, rel=1e-3)
