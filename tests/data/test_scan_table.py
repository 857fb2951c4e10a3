"""A table of scans gives the same index as a BIDS dataset."""

import re

import pandas as pd
import pytest

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.index import build_index, pair_scans
from dualflow.errors import DataError

TRAINING_ONLY = SplitConfig(validation=0, test=0)


@pytest.fixture
def index(tmp_path):
    """Return a function that writes a table and empty files, and indexes them."""

    def index(text, *, study=None, split=TRAINING_ONLY, files=("a.nii", "b.nii", "c.nii", "d.nii")):
        folder = tmp_path / "data"
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        (folder / "samples.tsv").write_text(text, encoding="utf-8")
        config = StudyConfig(name="t", samples=folder / "samples.tsv", **(study or {}))
        return build_index(folder, config, split) if split else pair_scans(folder, config)

    return index


def reasons(index) -> dict[str, str]:
    return {row.scan: row.reason for row in index.quarantined}


def test_na_is_a_label_and_no_session(index):
    """Initials may be NA, and programs write it for no session."""
    pairs = index("subject\tsession\tT1w\tFDG\nNA\tNA\ta.nii\tb.nii\n").pairs
    assert pairs["scan"].tolist() == ["sub-NA"]


@pytest.mark.parametrize("columns", ["T1w\tFDG", "source\ttarget"])
def test_rows_become_scans(index, columns):
    """Columns are named by modality or role, labels have a prefix or not, and n/a marks missing files."""
    text = f"subject\tsession\t{columns}\tage\nsub-2\tses-x\ta.nii\tb.nii\t70\n1\tn/a\tc.nii\tn/a\t71.5\n"
    pairs = index(text, study={"side": ("age",)}).pairs
    assert pairs["scan"].tolist() == ["sub-1", "sub-2_ses-x"]
    assert pairs["session"].tolist() == [None, "x"]
    assert pairs["source"].tolist() == ["c.nii", "a.nii"]
    assert pairs["target"].tolist() == ["", "b.nii"]
    assert pairs["split"].tolist() == ["convert", "train"]
    assert pairs["age"].tolist() == [71.5, 70]


def test_a_table_elsewhere_pairs_the_files_of_a_dataset(tmp_path):
    """The dataset may be read-only. Paths are relative to it or absolute; files elsewhere are not read."""
    for name in ("bids/ses-1_T1w.nii", "bids/ses-2_FDG.nii", "own/b.nii", "own/c.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = tmp_path / "own/samples.tsv"
    absolute = tmp_path / "bids/ses-2_FDG.nii"
    rows = [f"1\tses-1_T1w.nii\t{absolute}", f"2\t{tmp_path}/own/b.nii\tses-2_FDG.nii", "3\t../own/c.nii\tn/a"]
    table.write_text("\n".join(["subject\tT1w\tFDG", *rows]) + "\n")
    study = StudyConfig(name="t", bids=tmp_path / "bids", samples=table)
    listed = build_index(tmp_path / "bids", study, TRAINING_ONLY)
    assert listed.pairs[["scan", "source", "target"]].to_numpy().tolist() == [
        ["sub-1", "ses-1_T1w.nii", "ses-2_FDG.nii"]
    ]
    assert reasons(listed).keys() == {"sub-2", "sub-3"}
    assert all("leads out of the dataset" in reason for reason in reasons(listed).values())


def test_a_side_column_may_have_any_name(index):
    """Also that of a column which dualflow's own tables have."""
    pairs = index("subject\tT1w\tFDG\tkey\n1\ta.nii\tb.nii\t7\n", study={"side": ("key",)}).pairs
    assert pairs["key"].tolist() == [7]


def test_a_table_without_targets_can_only_be_converted(index):
    """Training needs a target, and the error says so."""
    text = "subject\tT1w\n1\ta.nii\n2\tb.nii\n"
    assert index(text, split=None).pairs[["target", "split"]].values.tolist() == [["", "convert"]] * 2
    with pytest.raises(DataError, match="none of 2 scans with T1w has FDG too"):
        index(text)


def test_table_and_bids_dataset_have_the_same_index(index, make_bids, pair_files):
    """Pairs and splits of the same study are equal."""
    labels = [f"{number:02d}" for number in range(8)]
    files = [file for label in labels for file in pair_files(label)]
    subjects = "".join(f"{label}\t{'FM'[int(label) % 2]}\n" for label in labels)
    study = {"side": ("sex",)}
    bids = build_index(
        make_bids(files, "participant_id\tsex\n" + subjects), StudyConfig(name="t", **study), SplitConfig()
    )
    rows = "".join("\t".join([row[:2], *pair_files(row[:2]), row[3:]]) + "\n" for row in subjects.splitlines())
    table = index("subject\tT1w\tFDG\tsex\n" + rows, study=study, split=SplitConfig(), files=files)
    pd.testing.assert_frame_equal(table.pairs, bids.pairs)
    pd.testing.assert_frame_equal(table.splits, bids.splits)


def test_file_names_are_arbitrary(index):
    """File names may have spaces, other scripts and special characters."""
    names = ["my scans/Müller T1 (1).nii", "画像/頭.nii.gz", "a'b&c;$d.nii", "{x}*?[1].nii"]
    rows = "".join(f"{number}\t{name}\tn/a\n" for number, name in enumerate(names))
    indexed = index("subject\tT1w\tFDG\n" + rows, split=None, files=names)
    assert indexed.pairs["source"].tolist() == names


def test_files_stay_in_the_folder_of_the_table(index, tmp_path):
    """Paths and links that lead out of the folder are refused; absolute paths inside become relative."""
    (tmp_path / "outside.nii").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link.nii").symlink_to(tmp_path / "outside.nii")
    (tmp_path / "data/circle.nii").symlink_to("circle.nii")
    paths = ["../outside.nii", str(tmp_path / "outside.nii"), "link.nii", "circle.nii", "gone.nii", ".", "n" * 300]
    rows = "".join(f"{number}\t{path}\tn/a\n" for number, path in enumerate([*paths, tmp_path / "data/a.nii"]))
    indexed = index("subject\tT1w\tFDG\n" + rows, split=None)
    assert indexed.pairs[["scan", "source"]].values.tolist() == [["sub-7", "a.nii"]]
    # Python 3.13 follows a link to itself without an error.
    circle = "cannot be looked up|is not there"
    expected = [*["leads out"] * 3, circle, "is not there", "is a folder", "cannot be looked up"]
    for number, text in enumerate(expected):
        assert re.search(text, reasons(indexed)[f"sub-{number}"])


def test_a_path_by_another_link_to_the_folder_is_relative(tmp_path):
    """On clusters a home folder and a scratch folder often lead to one place."""
    (tmp_path / "real/ds").mkdir(parents=True)
    for alias in ("home", "scratch"):
        (tmp_path / alias).symlink_to(tmp_path / "real")
    (tmp_path / "real/ds/a.nii").touch()
    table = tmp_path / "home/ds/samples.tsv"
    table.write_text(f"subject\tT1w\n1\t{tmp_path}/scratch/ds/a.nii\n")
    listed = pair_scans(table.parent, StudyConfig(name="t", samples=table))
    assert listed.pairs["source"].tolist() == ["a.nii"]


def test_links_into_the_annex_above_the_table_are_followed(index, tmp_path):
    """A path that names the annex itself leads out of the folder."""
    annex = tmp_path / ".git/annex/objects/a"
    annex.parent.mkdir(parents=True)
    annex.touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link.nii").symlink_to(annex)
    indexed = index("subject\tT1w\tFDG\n1\tlink.nii\tn/a\n2\t../.git/annex/objects/a\tn/a\n", split=None)
    assert indexed.pairs[["scan", "source"]].values.tolist() == [["sub-1", "link.nii"]]
    assert "leads out" in reasons(indexed)["sub-2"]


def test_invalid_rows_are_excluded(index):
    """An invalid label, two rows of a scan, a target without source, and a side value that is no number."""
    rows = ["1\ta.nii\tb.nii\t70", "0_S_1\ta.nii\tb.nii\t71", "2\ta.nii\tb.nii\t72", "2\tc.nii\td.nii\t72",
            "3\tn/a\tb.nii\t73", "4\tc.nii\tn/a\told", "5\tn/a\tn/a\t74", "6\tc.nii\td.nii\t75"]  # fmt: skip
    indexed = index("subject\tT1w\tFDG\tage\n" + "\n".join(rows), study={"side": ("age",)})
    assert indexed.pairs["scan"].tolist() == ["sub-1", "sub-6"]
    expected = {
        "sub-0_S_1": "letters and digits only",
        "sub-2": "more than one row",
        "sub-3": "has FDG but no T1w; add its path to samples.tsv",
        "sub-4": "'age' is 'old'",
    }
    assert reasons(indexed).keys() == expected.keys()
    assert all(text in reasons(indexed)[key] for key, text in expected.items())
    assert indexed.missing["subjects in samples.tsv without a scan"] == ["5"]


@pytest.mark.parametrize(
    ("text", "study", "message"),
    [
        ("", {}, r"samples\.tsv: is not a table"),
        ("subject\tT1w\tFDG\n", {}, "no rows"),
        ("participant\tT1w\tFDG\n1\ta.nii\tb.nii\n", {}, "'subject'.*found: participant, T1w, FDG"),
        ("subject\tT1w\tFDG\n1\ta.nii\tb.nii\nn/a\tc.nii\td.nii\n", {}, "row 2 below the header has no subject"),
        ("subject\tT1\tFDG\n1\ta.nii\tb.nii\n", {}, "'T1w' or 'source'.*found: subject, T1, FDG"),
        ("subject\tT1w\tsource\tFDG\n1\ta.nii\ta.nii\tb.nii\n", {}, "one column 'T1w' or 'source'"),
        ("subject\tT1w\tFDG\n1\ta.nii\tb.nii\n", {"extra_sources": ("FLAIR",)}, "one column 'FLAIR'"),
        ("subject\tT1w\tFDG\tage\n1\ta.nii\tb.nii\t7\n", {"side": ("iq",)}, r"'iq' \(found: FDG, T1w, age\)"),
        ("subject\tT1w\tFDG\n1\ta.nii\tb.nii\t7\n", {}, "more cells than its header"),
    ],
)
def test_an_invalid_table_is_an_error(index, text, study, message):
    """The error is one line with the expected and the existing columns or rows."""
    with pytest.raises(DataError, match=message) as caught:
        index(text, study=study)
    assert "\n" not in str(caught.value)


def test_codes_that_a_json_file_explains_are_text(index, tmp_path):
    """Levels in samples.json make a column of codes categorical, as participants.json does."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/samples.json").write_text('{"group": {"Levels": {"0": "control", "1": "AD"}}}')
    indexed = index("subject\tT1w\tFDG\tgroup\n1\ta.nii\tb.nii\t1\n", study={"side": ("group",)})
    assert indexed.pairs["group"].tolist() == ["group-1"]
