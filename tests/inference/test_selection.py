"""Selection of scans by the labels of their subjects and sessions."""

from pathlib import Path

import pandas as pd
import pytest

from dualflow.data.index import STEP, Index
from dualflow.data.quarantine import Quarantine
from dualflow.errors import ConfigError
from dualflow.inference.selection import Selection

DATASET = Path("study")


@pytest.fixture
def index():
    """Scans of three subjects, one of them with two sessions; the scan of a fourth is excluded."""
    pairs = pd.DataFrame({"scan": ["sub-1", "sub-2_ses-a", "sub-2_ses-b", "sub-3"], "source": "t1.nii"})
    missing = {"subjects without a T1w scan": ["3", "4"], "subjects without a row": ["1"]}
    return Index(pairs, [Quarantine("sub-4", STEP, "2 files fit T1w")], missing)


@pytest.mark.parametrize(
    ("selection", "scans"),
    [
        ({}, ["sub-1", "sub-2_ses-a", "sub-2_ses-b", "sub-3", "sub-4"]),
        ({"participants": ["sub-1", "3"]}, ["sub-1", "sub-3"]),
        ({"participants": ["4"]}, ["sub-4"]),
        ({"sessions": ["ses-b"]}, ["sub-2_ses-b"]),
        ({"participants": ["2"], "sessions": ["a", "b"]}, ["sub-2_ses-a", "sub-2_ses-b"]),
    ],
)
def test_labels_select_usable_and_excluded_scans(index, selection, scans):
    """With or without their prefix."""
    chosen = Selection(**selection).select(index, DATASET)
    assert [*chosen.pairs["scan"], *(row.scan for row in chosen.quarantined)] == scans
    assert chosen.pairs.index.tolist() == list(range(len(chosen.pairs)))


def test_missing_data_are_those_of_the_selected_people(index):
    """Other subjects are not listed."""
    chosen = Selection(participants=["3"]).select(index, DATASET)
    assert chosen.missing == {"subjects without a T1w scan": ["3"], "subjects without a row": []}


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"participants": ["1", "sub-9"]}, "participant-label 9: no such scan in study; choose from: 1, 2, 3, 4"),
        ({"sessions": ["c"]}, "session-label c: .* choose from: a, b"),
        ({"participants": ["1"], "sessions": ["a"]}, "no scan of the participants 1 is of a"),
        ({"participants": ["2", "3"], "sessions": ["a"]}, "no scan of the participants 3 is of a; leave them out"),
    ],
)
def test_unknown_labels_are_refused(index, selection, words):
    """The error lists the labels that exist."""
    with pytest.raises(ConfigError, match=words):
        Selection(**selection).select(index, DATASET)
