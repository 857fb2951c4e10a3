"""File names of a study."""

from pathlib import Path

import pytest

from dualflow.errors import DataError
from dualflow.layout import Layout, Scan, bids_path, study_mask_paths, truth_path
from dualflow.modalities import MODALITIES

T1W, FDG = MODALITIES["T1w"], MODALITIES["FDG"]


@pytest.mark.parametrize(
    ("scan", "key", "folder"),
    [(Scan("01"), "sub-01", "sub-01"), (Scan("01", "m06"), "sub-01_ses-m06", "sub-01/ses-m06")],
)
def test_scan_key_and_folder(scan, key, folder):
    """The key of a scan parses to the same scan, with and without a session."""
    assert scan.key == key
    assert scan.folder == Path(folder)
    assert Scan.parse(key) == scan


@pytest.mark.parametrize("label", ["", "a_b", "a-b", "../x", "a b", "é"])
def test_invalid_labels_are_refused(label):
    """Labels have letters and digits only, so they cannot name another folder."""
    with pytest.raises(DataError, match="BIDS label"):
        Scan(label)
    with pytest.raises(DataError, match="BIDS label"):
        Scan("01", label)


@pytest.mark.parametrize("key", ["", "01", "sub-01/ses-1", "sub-01_ses-", "sub-01_run-1", "sub-01_ses-1_T1w"])
def test_parse_refuses_other_strings(key):
    """Only complete keys are parsed."""
    with pytest.raises(DataError, match="not of the form"):
        Scan.parse(key)


def test_bids_names():
    """Entities have the standard's order, only PET has a tracer, and a mask has its own suffix."""
    scan = Scan("01", "a")
    assert bids_path(Path("d"), scan, FDG, space="T1w", desc="synth") == Path(
        "d/sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_space-T1w_desc-synth_pet.nii.gz"
    )
    assert bids_path(Path("d"), scan, T1W) == Path("d/sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    assert "trc" not in bids_path(Path("d"), scan, FDG, suffix="mask").name


def test_paths_are_unique():
    """Every file of a study has a different path below the root of the study."""
    layout = Layout(Path("results/study"))
    scans = [Scan("01"), Scan("01", "1"), Scan("02", "1")]
    paths = [layout.pairs, layout.index_quarantine, layout.quarantine, layout.report, layout.manifest("index")]
    paths += [layout.model("dualflow", 0), layout.model("dualflow", 1), layout.log("index"), layout.benchmark("index")]
    paths += [layout.table("scans_dualflow_seed-0"), layout.stress("dualflow", 0), layout.stress("dualflow", 1)]
    paths += [layout.table("comparison"), layout.page("comparison"), layout.comparison_plan, layout.qc, layout.quality]
    paths += [layout.splits, layout.study_summary, layout.digests]
    for scan in scans:
        paths += [layout.on_grid(scan, T1W), layout.on_grid(scan, FDG), layout.mask_on_grid(scan, T1W)]
        paths += [layout.mask_native(scan, T1W), layout.target_native(scan, T1W, FDG), layout.record(scan, T1W)]
        paths += [layout.synthetic(scan, T1W, FDG, desc) for desc in ("synth", "synthmean", "synthstd", "synth01")]
        paths += [layout.figure(scan, "qc"), layout.scan_manifest(scan), layout.scan_seconds(scan)]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(layout.root) for path in paths)


def test_record_lies_beside_its_volume():
    """The record is the sidecar of the preprocessed source."""
    layout = Layout(Path("r"))
    record = layout.record(Scan("01"), T1W)
    assert record.parent == layout.on_grid(Scan("01"), T1W).parent
    assert record.name == layout.on_grid(Scan("01"), T1W).name.replace(".nii.gz", ".json")


PATHS = {
    "configs/abc.json": lambda layout: layout.resolved_config("abc"),
    "bids": lambda layout: layout.bids,
    "derivatives/dualflow": lambda layout: layout.derivatives,
    "index/pairs.tsv": lambda layout: layout.pairs,
    "index/quarantine.tsv": lambda layout: layout.index_quarantine,
    "index/splits.tsv": lambda layout: layout.splits,
    "index/summary.md": lambda layout: layout.study_summary,
    "index/digests.tsv": lambda layout: layout.digests,
    "quarantine.tsv": lambda layout: layout.quarantine,
    "quality.tsv": lambda layout: layout.quality,
    "qc.html": lambda layout: layout.qc,
    "report.html": lambda layout: layout.report,
    "figures/regions.png": lambda layout: layout.report_figure("regions"),
    "figures/others": lambda layout: layout.other_figures,
    "metrics": lambda layout: layout.tables,
    "metrics/summary.tsv": lambda layout: layout.table("summary"),
    "metrics/summary.md": lambda layout: layout.page("summary"),
    "metrics/stress_dualflow_seed-1.tsv": lambda layout: layout.stress("dualflow", 1),
    "manifests/train/dualflow_seed-1.json": lambda layout: layout.training_manifest("dualflow", 1),
    "compare/plan.json": lambda layout: layout.comparison_plan,
    "conversion.tsv": lambda layout: layout.conversions,
    "conversion.html": lambda layout: layout.conversion_page,
    "benchmarks/conversions/sub-01.json": lambda layout: layout.conversion_seconds(Scan("01")),
    "benchmarks/scans/sub-01.json": lambda layout: layout.scan_seconds(Scan("01")),
    "derivatives/dualflow/sub-01/figures/sub-01_ses-2_qc.jpg": lambda layout: layout.figure(Scan("01", "2"), "qc"),
    "models/dualflow/seed-1": lambda layout: layout.model("dualflow", 1),
    "models/.closed_form": lambda layout: layout.closed_form_cache,
    "pending": lambda layout: layout.pending_records,
    "manifests/train/x.json": lambda layout: layout.manifest("train/x"),
    "manifests/scans/sub-01.json": lambda layout: layout.scan_manifest(Scan("01")),
    "logs/train/x.log": lambda layout: layout.log("train/x"),
    "locks/train/x.lock": lambda layout: layout.lock("train/x"),
    "benchmarks/train/x.tsv": lambda layout: layout.benchmark("train/x"),
}


@pytest.mark.parametrize("path", PATHS)
def test_results_lie_where_users_and_tools_expect_them(path):
    """Renaming one would hide the results of every finished study."""
    assert PATHS[path](Layout(Path("results"))) == Path("results") / path


def test_truth_and_masks_of_a_study():
    """The truth is a derivative of the cohort; a mask may be named after its image or its scan, in two formats."""
    scan = Scan("01")
    truth = truth_path(Path("bids"), scan, FDG, "expected")
    assert truth == Path("bids/derivatives/truth/sub-01/pet/sub-01_trc-FDG_desc-expected_pet.nii.gz")
    paths = study_mask_paths(Path("masks"), scan, Path("sub-01_run-2_T1w.nii.gz"), T1W)
    assert paths[0] == Path("masks/sub-01/anat/sub-01_run-2_desc-brain_mask.nii.gz")
    assert Path("masks/sub-01/anat/sub-01_space-orig_desc-brain_mask.nii") in paths
    assert len(set(paths)) == len(paths) == 12
