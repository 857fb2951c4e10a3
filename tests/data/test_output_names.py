"""Labels that are too long for the names of outputs."""

import gzip
from pathlib import Path

import pytest

from dualflow.commit import commit_bytes, commit_text
from dualflow.config import StudyConfig
from dualflow.data import output_names
from dualflow.data.index import pair_scans
from dualflow.data.output_names import longest_name, name_limit
from dualflow.errors import CommitError
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality

STUDY = StudyConfig(name="t")


def test_a_scan_with_a_long_label_is_excluded_and_the_others_are_not(make_bids, pair_files):
    """The longest label that fits can be written; one more character excludes the scan with the remedy."""
    root = make_bids([])
    longest = "x" * (name_limit(root) - len(longest_name(Scan("1"), STUDY)) + 1)
    for label in ("1", longest, f"{longest}yy"):
        for file in pair_files(label):
            (root / file).parent.mkdir(parents=True)
            (root / file).touch()
    index = pair_scans(root, STUDY, root / "results/later")
    assert index.pairs["subject"].tolist() == ["1", longest]
    [excluded] = index.quarantined
    assert excluded.scan == f"sub-{longest}yy"
    assert "shorten its subject or session label by 2 characters" in excluded.reason
    commit_bytes(root / longest_name(Scan(longest), STUDY), gzip.compress(b"written"))


def test_the_longest_name_is_that_of_any_output():
    """No output of preprocessing or conversion has a longer name, nor has its sidecar."""
    layout, scan, study = Layout(Path()), Scan("1", "2"), STUDY.model_copy(update={"extra_sources": ("FLAIR",)})
    source, target = modality("T1w"), modality("FDG")
    paths = [
        *(layout.synthetic(scan, source, target, desc) for desc in ("synth", "synthmean", "synth0100")),
        *(layout.on_grid(scan, modality(name)) for name in study.modalities),
        layout.mask_on_grid(scan, source), layout.mask_native(scan, source), layout.record(scan, source),
        layout.target_native(scan, source, target), layout.region_table(scan, source, target),
        layout.deviation(scan, source, source), layout.figure(scan, "synth"), layout.scan_manifest(scan),
        layout.conversion_seconds(scan),
    ]  # fmt: skip
    assert max(len(path.name) for path in paths) == len(longest_name(scan, study))


def test_the_limit_is_that_of_the_file_system(monkeypatch, tmp_path):
    """Encrypted home folders allow 143 bytes."""
    limit = name_limit(tmp_path)
    monkeypatch.setattr(output_names.os, "pathconf", lambda *_: 143)
    assert name_limit(tmp_path / "not" / "yet") < limit


def test_a_name_that_is_too_long_is_no_full_disk(tmp_path):
    """The remedy is a shorter label."""
    with pytest.raises(CommitError, match=r"File name too long.*; shorten the subject or session label") as caught:
        commit_text(tmp_path / ("x" * 250), "text")
    assert "free space" not in str(caught.value)
