"""The folder of a cohort has the configured subjects only."""

import pandas as pd

from dualflow.cohort import participants, truth_root
from dualflow.commands.make_cohort import finish_cohort
from dualflow.config import parse_config


def test_a_smaller_cohort_removes_the_surplus_subjects(tmp_path):
    """Their images, ground truth and manifests are removed, and the participants table is updated."""
    config = parse_config({"study": {"name": "x", "results": str(tmp_path)}, "cohort": {"subjects": 3}})
    layout = config.layout
    labels = [subject.label for subject in participants(5, 0)]
    for label in labels:
        for parent in (layout.bids, truth_root(layout.bids)):
            (parent / f"sub-{label}" / "anat").mkdir(parents=True)
        manifest = layout.manifest(f"cohort/sub-{label}")
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.touch()
    finish_cohort(config)
    expected = [f"sub-{label}" for label in labels[:3]]
    for parent in (layout.bids, truth_root(layout.bids)):
        assert sorted(folder.name for folder in parent.glob("sub-*")) == expected
    assert sorted(file.stem for file in layout.manifest("cohort/x").parent.iterdir()) == expected
    assert list(pd.read_csv(layout.bids / "participants.tsv", sep="\t")["participant_id"]) == expected
