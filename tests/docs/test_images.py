"""Pictures of the documentation are those that its scripts draw, and light."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from dualflow.config import load_config
from dualflow.layout import Scan
from dualflow.modalities import MODALITIES

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "scripts"))
make_diagrams = pytest.importorskip("make_diagrams")


@pytest.mark.parametrize("name", make_diagrams.DRAWINGS)
def test_diagram_is_up_to_date(name):
    """The committed SVG is what the script draws."""
    assert (DOCS / "images" / f"{name}.svg").read_text() == make_diagrams.DRAWINGS[name]().svg()


def test_images_are_small():
    """No picture is larger than 400 kB."""
    assert all(image.stat().st_size < 400_000 for image in (DOCS / "images").iterdir())


def test_figure_of_a_study(tmp_path):
    """`make figure` draws the held-out subject of median error from the files that the layout names."""
    make_figure = pytest.importorskip("make_figure")
    config = load_config(DOCS.parent / "configs" / "quickstart.yaml", [f"study.results={tmp_path}"])
    layout, source, target = config.layout, MODALITIES["T1w"], MODALITIES["FDG"]
    layout.tables.mkdir(parents=True)
    layout.pairs.parent.mkdir()
    layout.table("scans_dualflow_seed-0").write_text("scan\tmae\nsub-1\t0.3\nsub-2\t0.2\nsub-3\t0.1\n")
    header = "scan\tsubject\tsession\tsource\ttarget\tsplit\n"
    layout.pairs.write_text(f"{header}sub-2\t2\tn/a\tsub-2_T1w.nii.gz\tsub-2_pet.nii.gz\ttest\n")
    scan, volume = Scan("2"), np.random.default_rng(0).random((30, 40, 30), np.float32) + 0.1
    volumes = {
        layout.mask_native(scan, source): np.ones_like(volume),
        layout.synthetic(scan, source, target, "synth"): volume,
        layout.synthetic(scan, source, target, "synthstd"): volume,
        layout.target_native(scan, source, target): volume,
        config.bids / "sub-2_T1w.nii.gz": volume,
    }
    for path, values in volumes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    out = tmp_path / "figure.png"
    options = ["--config", str(DOCS.parent / "configs" / "quickstart.yaml"), "--set", f"study.results={tmp_path}"]
    result = CliRunner().invoke(make_figure.main, [*options, "--out", str(out)], catch_exceptions=False)
    assert "sub-2, MAE 0.2000 SUVR" in result.output
    assert out.stat().st_size > 10_000
