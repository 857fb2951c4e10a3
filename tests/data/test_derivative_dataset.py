"""Description and README of the derivative dataset."""

import json
from pathlib import Path

import pytest

from dualflow.config import StudyConfig
from dualflow.data.derivative_dataset import derivatives_readme, describe_derivatives
from dualflow.layout import Layout, Scan
from dualflow.modalities import MODALITIES

STUDY = StudyConfig(name="mine", extra_sources=("FLAIR",))


def test_the_dataset_describes_itself(tmp_path):
    """A derivative dataset has a description, a README and a .bidsignore of the files that BIDS does not define."""
    layout = Layout(tmp_path)
    describe_derivatives(layout, "mine", STUDY)
    description = json.loads((layout.derivatives / "dataset_description.json").read_text())
    assert (description["DatasetType"], description["GeneratedBy"][0]["Name"]) == ("derivative", "dualflow")
    assert "figures" in (layout.derivatives / ".bidsignore").read_text().splitlines()
    assert (layout.derivatives / "README").read_text() == derivatives_readme(layout, "mine", STUDY)


def test_the_readme_names_every_file_with_its_unit():
    """Each kind of file of the layout is listed, and each modality has its unit."""
    layout, scan, rows = Layout(Path("r")), Scan("LABEL"), [MODALITIES[name] for name in ("T1w", "FLAIR", "FDG")]
    text, (source, _, target) = derivatives_readme(layout, "mine", STUDY), rows
    files = [layout.on_grid(scan, row) for row in rows]
    files += [layout.mask_on_grid(scan, source), layout.mask_native(scan, source), layout.figure(scan, "qc")]
    files += [layout.target_native(scan, source, target), layout.imputed_volume(scan, target, 1)]
    files += [layout.synthetic(scan, source, target, desc) for desc in ("synth", "synthmean", "synthstd", "synth01")]
    for file in files:
        assert file.name in text
    for line in ("T1w: no physical unit; 0 and 1 are", "FLAIR: no physical unit", "FDG: SUVR, the uptake divided by"):
        assert f"\n{line}" in text
    assert "NOT MEASUREMENTS" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(("folder", "manifests"), [("derivatives/dualflow", "../../manifests"), (".", "manifests")])
def test_the_readme_says_where_to_trace_files(folder, manifests):
    """Paths of manifests and of quarantine.tsv are relative to the dataset."""
    words = " ".join(derivatives_readme(Layout(Path("r"), folder), "mine", STUDY).split())
    assert f"{manifests}/scans and {manifests}/convert" in words
    assert f"the reason in {manifests.replace('manifests', 'quarantine.tsv')}." in words
