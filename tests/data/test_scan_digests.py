"""The table of file digests: a file is read again only if it changed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dualflow.data import scan_digests
from dualflow.data.scan_digests import digest_files, read_digests
from dualflow.digests import sha256

FILES = [Path(f"{number}.nii") for number in (1, 2, 3)]


def write(path: Path, seed: int, shape=(4, 5, 6)):
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    voxels[0, 0, 0] = np.nan if seed == 9 else 0
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return a function that digests three files, and returns digests and names of the files that it read."""
    for seed, file in enumerate(FILES):
        write(tmp_path / file, seed)
    read: list[str] = []
    digest_image = scan_digests.digest_image
    monkeypatch.setattr(scan_digests, "digest_image", lambda path: read.append(path.name) or digest_image(path))

    def study():
        read.clear()
        return digest_files(tmp_path, FILES, tmp_path / "digests.tsv"), list(read)

    return study


def test_only_changed_files_are_read_again(study, tmp_path):
    """A damaged table is built again, and a damaged row is dropped."""
    first, read = study()
    assert read == [file.name for file in FILES]
    assert study() == (first, [])
    write(tmp_path / FILES[2], 6, shape=(6, 5, 4))
    assert study()[1] == ["3.nii"]
    (tmp_path / "digests.tsv").write_text("damaged")
    assert study()[1] == [file.name for file in FILES]
    assert study()[1] == []
    table = (tmp_path / "digests.tsv").read_text()
    digest = table.splitlines()[2].split("\t")[4]
    (tmp_path / "digests.tsv").write_text(table.replace(digest, digest[::-1]))
    assert study()[1] == ["2.nii"]


def test_a_damaged_row_is_read_again(study, tmp_path):
    """A flipped bit in a cached digest is noticed; the other rows are used."""
    digests, _ = study()
    table = tmp_path / "digests.tsv"
    wrong = digests[FILES[1]].sha256.translate(str.maketrans("0123456789abcdef", "1032547698badcfe"))
    table.write_text(table.read_text().replace(digests[FILES[1]].sha256, wrong))
    assert study() == (digests, ["2.nii"])


def test_the_table_preserves_digests(study, tmp_path):
    """Both digests and the exact value range, including NaN, are read back."""
    write(tmp_path / FILES[1], 9)
    digests, _ = study()
    table = read_digests(tmp_path / "digests.tsv")
    assert repr(table) == repr(digests)
    assert np.isnan(table[FILES[1]].minimum)
    assert table[FILES[0]].sha256 == sha256(tmp_path / FILES[0])


def test_a_table_with_other_columns_is_ignored(tmp_path):
    """A table without file digests counts as empty."""
    (tmp_path / "digests.tsv").write_text("path\tsize\tmtime_ns\tvalues_sha256\n1.nii\t4\t5\tab\n")
    assert read_digests(tmp_path / "digests.tsv") == {}


def test_a_damaged_file_has_no_digest(study, tmp_path):
    """Other files have digests."""
    (tmp_path / FILES[0]).write_bytes(b"damaged")
    assert study()[0].keys() == {FILES[1], FILES[2]}
