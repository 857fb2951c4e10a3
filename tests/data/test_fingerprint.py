"""The fingerprint of a study: changes of it rebuild the index."""

import gzip
import os
import subprocess
import sys

import pytest

from dualflow.commit import commit_bytes, commit_text
from dualflow.config import SplitConfig, StudyConfig, parse_config
from dualflow.data import fingerprint, tsv
from dualflow.data.fingerprint import study_fingerprint

SCAN = "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"


@pytest.fixture
def study(tmp_path):
    """A BIDS dataset and a table of scans with the same scan, masks and splits."""
    root = tmp_path / "derivatives" / "study"
    commit_text(root / "participants.tsv", "age 71")
    for table in (root / "samples.tsv", root.parent / "pairs.tsv"):
        commit_text(table, f"subject\tT1w\n1\t{SCAN}\n1\tno/file\n")
    commit_bytes(root / SCAN, gzip.compress(b"scan"))
    return root


def digest(root, **study):
    # `model_copy` skips the check that the files exist.
    sections = {
        "study": StudyConfig(name="x", **{name: root / path for name, path in study.items()}),
        "split": SplitConfig(file=root / "kept.tsv"),
    }
    return study_fingerprint(parse_config({"study": {"name": "x"}}).model_copy(update=sections))


@pytest.mark.parametrize(
    "inputs",
    [
        {"bids": ""},
        {"samples": "samples.tsv"},
        {"bids": "", "samples": "../pairs.tsv"},
        {"bids": "", "masks": "masks", "exclusions": "out.tsv"},
    ],
)
def test_the_fingerprint_changes_only_with_what_the_index_reads(study, inputs):
    """Edits of tables, sidecars, scans and masks change it, even at equal length; README and derivatives do not."""
    table = study / inputs.get("samples", "participants.tsv")
    text = table.read_text()

    def replace_scan():
        commit_bytes(study / SCAN, gzip.compress(b"snac"))
        os.utime(study / SCAN, (0, 0))  # clocks of file systems may be too coarse for the difference

    changes = [
        lambda: commit_text(table, text.replace("1", "2", 1)),
        lambda: commit_text(table, text),
        replace_scan,
        lambda: commit_text(study / SCAN.replace(".nii.gz", ".json"), "{}"),
        lambda: commit_text(study / "kept.tsv", "subject\tsplit\n"),
    ]
    # Sidecars that scans inherit.
    changes += [lambda: commit_text(study / "T1w.json", "{}"), lambda: commit_text(study / "sub-1/pet.json", "{}")]
    if "masks" in inputs:
        mask = study / "masks/sub-1/ses-1/anat/sub-1_ses-1_desc-brain_mask.nii.gz"
        changes.append(lambda: commit_bytes(mask, gzip.compress(b"mask")))
        changes.append(lambda: commit_text(study / "out.tsv", "subject\tdecision\treason\n"))
    digests = {digest(study, **inputs)}
    commit_text(study / "README", "edited")
    commit_text(study / "derivatives" / "x" / "sub-1" / "anat" / "x.json", "{}")
    assert digest(study, **inputs) in digests
    for position, change in enumerate(changes):
        change()
        assert (digest(study, **inputs) in digests) == (position == 1), position
        digests.add(digest(study, **inputs))


def test_the_fingerprint_follows_links_like_the_index(tmp_path):
    """A scan in a linked session folder counts; a dead link to a participants table does not."""
    study, session = tmp_path / "study", tmp_path / "linked"
    (study / "sub-1").mkdir(parents=True)
    (study / "participants.tsv").symlink_to(tmp_path / "nowhere")
    empty = digest(study, bids="")
    commit_bytes(session / "pet" / "sub-1_ses-1_pet.nii.gz", gzip.compress(b"scan"))
    (study / "sub-1" / "ses-1").symlink_to(session)
    assert digest(study, bids="") != empty


@pytest.mark.parametrize("text", [b"", b"\xff\x00\tx", b"subject\n" + b"x" * 5000])
def test_an_unusable_table_has_a_fingerprint(tmp_path, text):
    """The index, not the fingerprint, reports what is wrong with a table."""
    (tmp_path / "samples.tsv").write_bytes(text)
    assert digest(tmp_path, samples="samples.tsv") != digest(tmp_path, samples="gone.tsv")


def test_all_readable_tables_are_hashed():
    """Fingerprint and index have the same limit of the table size."""
    assert fingerprint.MAX_BYTES == tsv.MAX_BYTES


def test_a_fingerprint_needs_no_numerical_library():
    """Parsing the Snakefile computes the fingerprint, so it must be fast."""
    code = "import sys, dualflow.data.fingerprint; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "numpy", "nibabel", "SimpleITK"} & set(modules)
