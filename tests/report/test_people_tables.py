"""Tables of people."""

import numpy as np
import pandas as pd
import pytest

from dualflow.data.index import split_people
from dualflow.evaluation.statistics import MIN_SUBJECTS
from dualflow.modalities import MODALITIES
from dualflow.report.people_tables import demographics, group_scores, group_table, model_group_table, worst_people

ROW = MODALITIES["FDG"]
COUNT = 12


@pytest.fixture
def pairs() -> pd.DataFrame:
    """Twelve test people, eight of them with the diagnosis CN, and two training people."""
    rows = [
        {
            "scan": f"sub-{index:02d}", "subject": f"{index:02d}", "session": None, "source": "a", "target": "b",
            "split": "test" if index < COUNT else "train", "age": 60.0 + index,
            "diagnosis": "CN" if index < 8 else "AD",
        }
        for index in range(COUNT + 2)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(age=lambda table: table["age"].where(table["scan"] != "sub-03"))


@pytest.fixture
def scores() -> pd.DataFrame:
    """Errors that grow with the label, but for a large one of sub-04."""
    errors = [0.9 if index == 4 else 0.1 + 0.01 * index for index in range(COUNT)]
    scans = [f"sub-{index:02d}" for index in range(COUNT)]
    return pd.DataFrame({"model": "flow", "seed": 0, "scan": scans, "mae": errors, "region_bias": 1.0})


def test_people_are_described_by_split(pairs):
    """Numbers have mean, SD and range, categories counts, and unknown values their own row."""
    table = demographics(pairs).frame.set_index("Variable")
    assert list(table.columns) == ["Training", "Test", "All"]
    assert table.loc["subjects"].tolist() == ["2", "12", "14"]
    assert table.loc["diagnosis CN"].tolist() == ["0 (0 %)", "8 (67 %)", "8 (57 %)"]
    assert table.loc["age, mean ± SD (range)", "Training"] == "72.50 ± 0.71 (72.00 to 73.00)"
    assert table.loc["age unknown", "Test"] == "1 (8 %)"


def test_a_person_with_a_target_at_one_session_belongs_to_its_split():
    """Each column describes its people at their first scan of the split, and only the last person lacks a target."""
    splits = {
        "1": ("convert", "train"),
        "2": ("convert", "test"),
        "3": ("test", "convert"),
        "4": ("convert", "convert"),
    }
    rows = [
        {"scan": f"sub-{label}_ses-{visit}", "subject": label, "split": split, "age": 70.0 + visit,
         "diagnosis": "AD" if visit and label == "1" else "CN"}
        for label, pair in splits.items() for visit, split in enumerate(pair)
    ]  # fmt: skip
    pairs = pd.DataFrame(rows)
    assert split_people(pairs, "convert")["subject"].tolist() == ["4"]
    table = demographics(pairs).frame.set_index("Variable")
    assert table.loc["subjects"].to_dict() == {"Training": "1", "Test": "2", "Without a target": "1", "All": "4"}
    assert table.loc["scans"].to_dict() == {"Training": "1", "Test": "2", "Without a target": "5", "All": "8"}
    assert table.loc["age, mean ± SD (range)", "Training"] == "71 (71 to 71)"
    assert table.loc["diagnosis AD"].tolist() == ["1 (100 %)", "0 (0 %)", "0 (0 %)", "0 (0 %)"]
    without = demographics(pairs[pairs["subject"] != "4"]).frame.set_index("Variable")
    assert without["Without a target"].tolist() == ["0", "3", "–", "–", "–"]  # noqa: RUF001


def test_groups_have_their_means_and_intervals_only_if_large_enough(pairs, scores):
    """A group of eight has an interval, one of four has none; sites come from the strata of the index."""
    splits = pd.DataFrame({"subject": [f"{index:02d}" for index in range(COUNT)], "fold": None, "split": "test"})
    splits["site"] = ["north"] * 10 + ["south"] * 2
    groups = group_scores(scores, pairs[pairs["split"] == "test"], splits, bootstrap=50, seed=0)
    table = group_table(groups, ROW, "flow").frame.set_index("Group")
    expected = scores["mae"][:8].mean()
    assert table.loc["diagnosis CN", "Subjects"] == "8"
    assert table.loc["diagnosis CN", "MAE (SUVR)"].startswith(f"{expected:.4f} [")
    assert table.loc["diagnosis AD", "MAE (SUVR)"] == f"{scores['mae'][8:].mean():.4f}"
    assert table.loc["site south", "Subjects"] == "2"
    assert sum(name.startswith("age ") for name in table.index) == 4


def test_a_column_of_many_groups_has_its_largest(pairs, scores):
    """Captions say so, because smaller groups, and their people, are missing from the tables."""
    test = pairs[pairs["split"] == "test"]
    many = pd.concat(
        [test.assign(scan=test["scan"] + f"x{copy}", subject=test["subject"] + f"x{copy}") for copy in "ab"]
    )
    many = many.assign(site=["large"] * 10 + [f"site-{index:02d}" for index in range(14)])
    both = pd.concat([scores.assign(scan=scores["scan"] + f"x{copy}") for copy in "ab"])
    splits = pd.DataFrame({"subject": many["subject"], "fold": None, "split": "test"})
    groups = group_scores(both, many, splits, bootstrap=10, seed=0)
    table = group_table(groups, ROW, "flow")
    sites = [name for name in table.frame["Group"] if name.startswith("site ")]
    assert (len(sites), sites[0]) == (12, "site large")
    for one in (table, model_group_table(groups, ROW)):
        assert "a column of more than 12 groups has its 12 largest." in one.caption


def test_every_model_has_its_error_in_each_group(pairs, scores):
    """The least error of a large group is bold, and a model without scores in a group has none."""
    splits = pd.DataFrame({"subject": [f"{index:02d}" for index in range(COUNT)], "fold": None, "split": "test"})
    other = scores.assign(model="unet", mae=scores["mae"].where(scores.index < 8) + 0.1)
    both = pd.concat([scores, other.dropna(subset="mae")])
    groups = group_scores(both, pairs[pairs["split"] == "test"], splits, bootstrap=10, seed=0)
    table = model_group_table(groups, ROW)
    rows = table.frame.set_index("Model")
    assert rows["diagnosis CN"].tolist() == [f"{scores['mae'][:8].mean() + more:.4f}" for more in (0, 0.1)]
    assert rows["diagnosis AD"].tolist() == [f"{scores['mae'][8:].mean():.4f}", "–"]  # noqa: RUF001
    sizes = groups[(groups["model"] == "flow") & (groups["metric"] == "mae")]["subjects"]
    assert table.best == {(0, column) for column, size in enumerate(sizes, 1) if size >= MIN_SUBJECTS} != set()
    assert sizes.min() < MIN_SUBJECTS
    alone = group_table(groups, ROW, "flow").frame.set_index("Group")
    assert alone.loc["diagnosis CN", "Subjects"] == "8"
    assert alone.loc["diagnosis CN", "MAE (SUVR)"].startswith(f"{scores['mae'][:8].mean():.4f} [")


def test_the_worst_people_are_listed_with_numbers_and_flags(pairs, scores):
    """The largest error comes first, with side information and flags."""
    quality = pd.DataFrame({"scan": ["sub-04", "sub-11"], "flags": ["brain small", None]})
    table = worst_people(scores, pairs[pairs["split"] == "test"], quality, {"sub-04": "review"}, ROW, "flow").frame
    assert table["Subject"].tolist() == ["sub-04", "sub-11", "sub-10", "sub-09", "sub-08"]
    assert table.iloc[0].to_dict() == {
        "Subject": "sub-04", "MAE (SUVR)": "0.9000", "Region bias (%)": "1.00", "age": "64", "diagnosis": "CN",
        "Flags": "brain small", "Verdict": "review",
    }  # fmt: skip
    assert table["Verdict"].tolist()[1:] == ["–"] * 4  # noqa: RUF001


def test_people_without_side_information_have_no_groups(pairs, scores):
    """A study without side columns has people and scans alone, and no groups."""
    plain = pairs.drop(columns=["age", "diagnosis"])
    splits = pd.DataFrame({"subject": ["00"], "fold": [np.nan], "split": ["test"]})
    assert demographics(plain).frame["Variable"].tolist() == ["subjects", "scans"]
    assert group_scores(scores, plain[plain["split"] == "test"], splits, bootstrap=10, seed=0).empty
