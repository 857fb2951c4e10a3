"""Decisions of a reviewer on scans."""

import pytest

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.exclusions import COLUMNS, Decision, read_decisions
from dualflow.data.index import build_index
from dualflow.data.study_summary import study_summary
from dualflow.errors import DataError

HEADER = "\t".join(COLUMNS)


def write(folder, *rows):
    """Write a table as the quality control page saves it."""
    path = folder / "exclusions.tsv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_excluded_scans_leave_the_study_with_the_reason(tmp_path, make_bids, pair_files):
    """The index excludes the named visit, lists reason and step, and keeps the others."""
    root = make_bids([*pair_files("1", "a"), *pair_files("1", "b"), *pair_files("2"), *pair_files("3")])
    table = write(tmp_path, "1\tb\texclude\tmoved in  the scanner", "2\tn/a\tkeep\tn/a", "sub-3\tn/a\texclude\tCT")
    study = StudyConfig(name="t", exclusions=table)
    index = build_index(root, study, SplitConfig(validation=0, test=0))
    assert list(index.pairs["scan"]) == ["sub-1_ses-a", "sub-2"]
    assert [(row.scan, row.step, row.reason) for row in index.quarantined] == [
        ("sub-1_ses-b", "review", "moved in the scanner"),
        ("sub-3", "review", "CT"),
    ]


def test_a_decision_replaces_the_reason_of_the_index(tmp_path, make_bids, pair_files):
    """A visit without MR that a reviewer excludes needs no attention any more."""
    root = make_bids([*pair_files("1", "a"), pair_files("1", "b")[1]])
    table = write(tmp_path, "1\tb\texclude\tPET alone")
    index = build_index(root, StudyConfig(name="t", exclusions=table), SplitConfig(validation=0, test=0))
    assert [(row.scan, row.step, row.reason) for row in index.quarantined] == [("sub-1_ses-b", "review", "PET alone")]


def test_an_unknown_scan_is_an_error(tmp_path, make_bids, pair_files):
    """A decision on a scan that the study lacks is a mistake, also if it is kept."""
    study = StudyConfig(name="t", exclusions=write(tmp_path, "7\tn/a\tkeep\tn/a"))
    with pytest.raises(DataError, match="the study has no scan sub-7, expected"):
        build_index(make_bids(pair_files("1")), study, SplitConfig(validation=0, test=0))


def test_sessions_may_be_left_out(tmp_path):
    """A table without sessions is read, and no table has no decisions."""
    path = tmp_path / "t.tsv"
    path.write_text("subject\tdecision\treason\n1\tkeep\tn/a\n")
    assert read_decisions(path) == {"sub-1": Decision("keep", "")}
    assert read_decisions(None) == {}


def test_a_subject_may_be_called_na(tmp_path):
    """The label is no unknown value."""
    assert read_decisions(write(tmp_path, "NA\tn/a\tkeep\tn/a")) == {"sub-NA": Decision("keep", "")}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["1\tn/a\tmaybe\tx"], "decision 'maybe' on sub-1 is unknown, expected keep, exclude or exclude-target"),
        (["1\tn/a\tn/a\tx"], "decision 'None' on sub-1 is unknown"),
        (["1\tn/a\texclude\tn/a"], "sub-1 is excluded without a reason"),
        (["1\tn/a\texclude-target\tn/a"], "sub-1 is excluded without a reason"),
        (["1\tn/a\tkeep\tn/a", "1\tn/a\texclude\tx"], "more than one row for sub-1"),
        (["n/a\tn/a\tkeep\tn/a"], "a row has no subject"),
        (["a b\tn/a\tkeep\tn/a"], "label 'a b' is not a BIDS label"),
    ],
)
def test_invalid_rows_are_errors(tmp_path, rows, words):
    """Each mistake is named with the scan and the expectation."""
    with pytest.raises(DataError, match=words):
        read_decisions(write(tmp_path, *rows))


def test_a_missing_column_is_an_error(tmp_path):
    """The error names the column."""
    path = tmp_path / "t.tsv"
    path.write_text("subject\tdecision\n1\tkeep\n")
    with pytest.raises(DataError, match="has no column 'reason'"):
        read_decisions(path)


def test_a_target_alone_can_be_excluded(tmp_path, make_bids, pair_files):
    """The scan stays as one to convert, and the summary gives the reason."""
    root = make_bids([*pair_files("1"), *pair_files("2")])
    study = StudyConfig(name="t", exclusions=write(tmp_path, "2\tn/a\texclude-target\tmotion in PET"))
    split = SplitConfig(validation=0, test=0)
    index = build_index(root, study, split)
    assert index.pairs[["scan", "split"]].to_numpy().tolist() == [["sub-1", "train"], ["sub-2", "convert"]]
    assert index.quarantined == []
    assert "sub-2: motion in PET" in study_summary(index, study, split)
