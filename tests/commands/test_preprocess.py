"""The cohort's folder holds the configured people and nobody else."""

import pandas as pd

from dualflow.cohort import participants, truth_root
from dualflow.commands.preprocess import finish_cohort
from dualflow.config import parse_config


def test_a_smaller_cohort_keeps_nobody_of_the_larger(tmp_path):
    """People beyond the new number go with their truth and manifest; the table names those who stay."""
    config = parse_config({"study": {"name": "x", "results": str(tmp_path)}, "cohort": {"subjects": 3}})
    layout = config.layout
    labels = [person.label for person in participants(5, 0)]
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
