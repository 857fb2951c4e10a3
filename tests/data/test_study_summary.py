"""The summary of the index."""

from pathlib import Path

import pandas as pd
import pytest

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.duplicates import Entry
from dualflow.data.index import Index, build_index
from dualflow.data.quarantine import Quarantine
from dualflow.data.study_summary import study_summary
from dualflow.layout import Scan


def cells(text: str, name: str) -> list[str]:
    """Return the cells of a table row."""
    return next(
        [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines() if line.startswith(f"| {name} ")
    )


def test_the_summary_lists_scans_splits_and_missing_data(make_bids, pair_files):
    """Pairs, subjects, splits by stratum, missing data by name, and each excluded scan with its reason."""
    labels = [f"{number:02d}" for number in range(8)]
    files = [file for label in labels for file in pair_files(label)]
    files += ["sub-08/anat/sub-08_T1w.nii", "sub-09/pet/sub-09_trc-FDG_pet.nii"]
    files += ["sub-11/anat/sub-11_T1w.nii", "sub-11/anat/sub-11_T1w.nii.gz"]
    table = "participant_id\tsex\n" + "".join(f"sub-{label}\t{'FM'[int(label) % 2]}\n" for label in [*labels, "10"])
    study = StudyConfig(name="mine", side=("sex",))
    split = SplitConfig(validation=0.25, test=0.25, seed=3)
    text = study_summary(build_index(make_bids(files, table), study, split), study, split)
    assert text.startswith("# mine: T1w to FDG\n")
    assert cells(text, "usable") == ["9", "9"]
    assert cells(text, "pairs, with FDG") == ["8", "8"]
    assert cells(text, "to convert, without FDG") == ["1", "1"]
    assert cells(text, "excluded") == ["1", "1"]
    assert cells(text, "scans") == ["4", "2", "2", "1"]
    by_sex = [cells(text, f"subjects, sex {level}")[:3] for level in "FM"]
    assert [sum(map(int, column)) for column in zip(*by_sex, strict=True)] == [4, 2, 2]
    for line in (
        "Drawn with seed 3, stratified by sex. splits.tsv lists the split of each subject",
        "- scans with FDG but no T1w: 1 (sub-09)",
        "- subjects in participants.tsv without a scan: 1 (10)",
        "- subjects with a scan but not in participants.tsv: 3 (08, 09, 11)",
        "- scans without FDG: 1 (sub-08)",
        "- scans with sex unknown: 1 (sub-08)",
        "- side column 'sex' is taken as categories (F, M): participants.json does not declare its type;",
        "- sub-11: 2 files fit T1w: sub-11_T1w.nii, sub-11_T1w.nii.gz; keep one in the dataset",
    ):
        assert f"\n{line}" in text, text
    assert "## Duplicates\n\nNone.\n" in text


def test_people_with_a_target_at_one_visit_are_not_counted_as_without():
    """The subjects of `convert` are those without any target, as in the report."""
    rows = [("1", "1", "train"), ("1", "2", "convert"), ("2", "1", "convert"), ("2", "2", "convert")]
    pairs = pd.DataFrame(
        [(f"sub-{label}_ses-{visit}", label, visit, "a", "" if split == "convert" else "b", split)
         for label, visit, split in rows],
        columns=["scan", "subject", "session", "source", "target", "split"],
    )  # fmt: skip
    text = study_summary(Index(pairs, [], {}, []), StudyConfig(name="t"), SplitConfig())
    assert cells(text, "scans") == ["1", "0", "0", "3"]
    assert cells(text, "subjects") == ["1", "0", "0", "1"]


def test_long_lists_are_shortened_and_duplicates_are_listed():
    """Missing and excluded scans are listed up to a limit, and duplicates are listed in groups."""
    pairs = pd.DataFrame(
        [("sub-1", "1", None, "a", "b", "train")], columns=["scan", "subject", "session", "source", "target", "split"]
    )
    group: list[Entry] = [(Scan("1"), Path("x.nii")), (Scan("2"), Path("a/sub-2_T1w.nii"))]
    excluded = [Quarantine(f"sub-{number}", "pairing", "bad") for number in range(100, 143)]
    missing = {"gone": [str(number) for number in range(99)]}
    text = study_summary(Index(pairs, excluded, missing, [group]), StudyConfig(name="t"), SplitConfig())
    assert "- gone: 99 (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 87 more)" in text
    assert "- x.nii (sub-1) = a/sub-2_T1w.nii\n" in text
    assert text.endswith("- sub-139: bad\n- and 3 more, in quarantine.tsv\n")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"folds": 4, "fold": 2}, "Drawn with seed 0; fold 2 of 4 is the test set."),
        ({"folds": "leave-one-out"}, "Drawn with seed 0; fold 0 of 8 is the test set."),
        ({"file": "kept.tsv"}, "Read from kept.tsv."),
    ],
)
def test_the_origin_of_the_splits_is_named(make_bids, pair_files, split, expected):
    """The splits are drawn in folds or leave-one-out, or read from a table."""
    root = make_bids([file for label in "12345678" for file in pair_files(label)])
    (root / "kept.tsv").write_text("subject\tsplit\n" + "".join(f"{label}\ttrain\n" for label in "12345678"))
    config = SplitConfig(**split | ({"file": root / "kept.tsv"} if "file" in split else {}))
    study = StudyConfig(name="t")
    assert f"\n{expected} splits.tsv" in study_summary(build_index(root, study, config), study, config)
