"""The plan of a conversion: what is new, done and excluded."""

import nibabel as nib
import numpy as np
import pytest

from dualflow.config import ConvertConfig
from dualflow.data.quarantine import FACT, Quarantine
from dualflow.data.raw_scans import preprocess_section
from dualflow.data.scan_files import ScanFiles, input_digests
from dualflow.inference.conversion_record import conversion_inputs, side_values
from dualflow.inference.inputs import expand_inputs, resolve_inputs
from dualflow.inference.plan import plan_scans, plan_text
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest
from dualflow.models.card import ConstantSpread

CONFIG = ConvertConfig(samples=2)


@pytest.fixture
def inputs(tmp_path, card):
    """Four rows: images a, b and c, one of which is not NIfTI, and one without a file."""
    for name in "abc":
        nib.save(nib.Nifti1Image(np.arange(64, dtype="i2").reshape(4, 4, 4), np.eye(4)), tmp_path / f"{name}.nii")
    (tmp_path / "c.nii").write_bytes(b"no image")
    table = tmp_path / "samples.tsv"
    table.write_text("subject\tT1w\tage\na\ta.nii\t71\nb\tb.nii\tn/a\nc\tc.nii\t3\nd\tgone.nii\t4\n")
    out = tmp_path / "out"
    return resolve_inputs(expand_inputs([table]), card, out, tmp_path / "model", out / "sourcedata")


def finish(inputs, card, out, key, facts=None):
    """Write the manifests of a scan that is converted, or excluded with `facts`."""
    layout, scan = Layout(out, "."), Scan.parse(key)
    row = next(row for row in inputs.rows.to_dict("records") if row["scan"] == key)
    files = ScanFiles.of_row(inputs.root, row, inputs.study)
    section = preprocess_section(inputs.study, card.preprocess)
    digests = input_digests(files.open())
    write_manifest(
        layout.scan_manifest(scan), step="preprocess", outputs={}, inputs=digests, config=section, facts=facts
    )
    if not facts:
        side = side_values(card, inputs.rows.set_index("scan").loc[key].to_dict())
        write_manifest(
            layout.manifest(f"convert/{key}"),
            step="convert",
            outputs={},
            inputs=conversion_inputs(card, layout, scan, side),
            config=CONFIG.model_dump(mode="json"),
        )


def test_scans_are_new_done_or_excluded(inputs, card, tmp_path):
    """Files and side information of usable scans, reasons of the others; nothing is written."""
    planned = plan_scans(inputs, card, tmp_path / "out", CONFIG)
    assert [(scan.scan, scan.status) for scan in planned] == [
        ("sub-a", "new"), ("sub-b", "new"), ("sub-c", "excluded"), ("sub-d", "excluded")
    ]  # fmt: skip
    assert [scan.details for scan in planned[:2]] == ["a.nii, age=71", "b.nii, age=n/a"]
    assert planned[2].details.startswith("c.nii: ")
    assert "gone.nii is not there" in planned[3].details
    assert plan_text(planned).splitlines()[-1] == "dry run: 2 new, 0 done, 2 excluded; nothing was written"
    assert not (tmp_path / "out").exists()


def test_finished_scans_are_done_until_something_changes(inputs, card, tmp_path):
    """Another side value, number of samples or image makes a scan new; an earlier exclusion is repeated."""
    out = tmp_path / "out"

    def status(config=CONFIG):
        return [scan.status for scan in plan_scans(inputs, card, out, config)][:2]

    finish(inputs, card, out, "sub-a")
    excluded = Quarantine("sub-b", "preprocess", "no brain")
    finish(inputs, card, out, "sub-b", {FACT: excluded.fact()})
    assert status() == ["done", "excluded"]
    assert plan_scans(inputs, card, out, CONFIG)[1].details == "no brain"
    assert status(ConvertConfig(samples=3))[0] == "new"
    inputs.rows.loc[0, "age"] = 72.0
    assert status()[0] == "new"
    inputs.rows.loc[0, "age"] = 71.0
    assert status()[0] == "done"
    # The spread of a model without samples is in its card alone.
    wider = card.model_copy(update={"constant_spread": ConstantSpread(voxel=0.5, region=0.3, regions=3)})
    assert plan_scans(inputs, wider, out, CONFIG)[0].status == "new"
    assert status()[0] == "done"
    for name in "ab":
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "i2"), np.eye(4)), tmp_path / f"{name}.nii")
    assert status() == ["new", "new"]


def test_a_refused_scan_is_new_only_with_force(inputs, card, tmp_path):
    """A refused scan has no volumes; with `--force`, the run would write them."""
    finish(inputs, card, tmp_path / "out", "sub-a")
    statuses = [plan_scans(inputs, card, tmp_path / "out", CONFIG, force=force)[0].status for force in (False, True)]
    assert statuses == ["done", "new"]
