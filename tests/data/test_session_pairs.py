"""Sources and targets in different sessions."""

import pytest

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.index import build_index

JOINED = StudyConfig(name="t", join_sessions=True)
TRAINING_ONLY = SplitConfig(validation=0, test=0)
MR, PET = "sub-{0}/ses-{1}/anat/sub-{0}_ses-{1}_T1w.nii.gz", "sub-{0}/ses-{1}/pet/sub-{0}_ses-{1}_trc-FDG_pet.nii.gz"


def test_the_only_two_of_a_subject_are_a_pair(make_bids):
    """The session of the source names the pair; a target alone is no longer excluded."""
    root = make_bids([MR.format(1, "mr"), PET.format(1, "pet"), MR.format(2, "mr")])
    index = build_index(root, JOINED, TRAINING_ONLY)
    assert index.pairs[["scan", "target"]].to_numpy().tolist() == [
        ["sub-1_ses-mr", PET.format(1, "pet")],
        ["sub-2_ses-mr", ""],
    ]
    assert index.quarantined == []


def test_pairs_of_one_session_stay_together(make_bids):
    """Only what has no partner in its session looks for one elsewhere."""
    root = make_bids([MR.format(1, "a"), PET.format(1, "a"), MR.format(1, "b"), PET.format(1, "c")])
    targets = build_index(root, JOINED, TRAINING_ONLY).pairs.set_index("scan")["target"]
    assert targets.to_dict() == {"sub-1_ses-a": PET.format(1, "a"), "sub-1_ses-b": PET.format(1, "c")}


@pytest.mark.parametrize("more", [MR.format(1, "m2"), PET.format(1, "p2")])
def test_several_candidates_are_not_guessed(make_bids, more):
    """With two visits of either, the sources stay without a target, and the targets are listed as without a source."""
    root = make_bids([MR.format(1, "m1"), PET.format(1, "p1"), more, MR.format(2, "a"), PET.format(2, "a")])
    index = build_index(root, JOINED, TRAINING_ONLY)
    assert set(index.pairs.set_index("scan")["target"]) == {"", PET.format(2, "a")}
    assert index.quarantined == []
    assert list(index.lone_targets) == ["sub-1_ses-p1", "sub-1_ses-p2"][: 1 + ("pet" in more)]


def test_without_the_option_the_reason_names_it(make_bids):
    """An excluded target whose subject has a source elsewhere says how to pair them."""
    root = make_bids([MR.format(1, "mr"), PET.format(1, "pet"), MR.format(2, "a"), PET.format(2, "a")])
    (row,) = build_index(root, StudyConfig(name="t"), TRAINING_ONLY).quarantined
    assert row.scan == "sub-1_ses-pet"
    assert "T1w is in sub-1_ses-mr, another session: set study.join_sessions: true" in row.reason


def test_a_session_with_several_sources_keeps_its_target(make_bids):
    """It is excluded as a whole, and which of the subject's visits belong together is not guessed."""
    second = "sub-1/ses-pet/anat/sub-1_ses-pet_run-{}_T1w.nii.gz"
    paths = [MR.format(1, "mr"), second.format(1), second.format(2), PET.format(1, "pet")]
    index = build_index(make_bids([*paths, MR.format(2, "a"), PET.format(2, "a")]), JOINED, TRAINING_ONLY)
    assert index.pairs.set_index("scan")["target"].to_dict() == {"sub-1_ses-mr": "", "sub-2_ses-a": PET.format(2, "a")}
    assert [row.scan for row in index.quarantined] == ["sub-1_ses-pet"]


def test_visits_beside_an_unclear_one_are_not_joined(make_bids):
    """Either MR may belong to the PET."""
    second = "sub-1/ses-mr1/anat/sub-1_ses-mr1_run-{}_T1w.nii.gz"
    paths = [second.format(1), second.format(2), MR.format(1, "mr2"), PET.format(1, "pet")]
    index = build_index(make_bids([*paths, MR.format(2, "a"), PET.format(2, "a")]), JOINED, TRAINING_ONLY)
    assert index.pairs.set_index("scan")["target"].to_dict() == {"sub-1_ses-mr2": "", "sub-2_ses-a": PET.format(2, "a")}


def test_a_further_source_elsewhere_needs_a_table(make_bids):
    """Only targets are joined, so the option is no remedy."""
    flair = "sub-1/ses-b/anat/sub-1_ses-b_FLAIR.nii.gz"
    both = [MR.format(2, "a"), MR.format(2, "a").replace("T1w", "FLAIR"), PET.format(2, "a")]
    root = make_bids([MR.format(1, "a"), PET.format(1, "a"), flair, *both])
    study = StudyConfig(name="t", extra_sources=("FLAIR",))
    reasons = {row.scan: row.reason for row in build_index(root, study, TRAINING_ONLY).quarantined}
    assert "FLAIR is in sub-1_ses-b, another session: list the pairs in a table" in reasons["sub-1_ses-a"]
