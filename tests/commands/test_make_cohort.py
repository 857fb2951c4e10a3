"""The folder of a cohort has the configured subjects only, simulated by the configured law."""

import pandas as pd

from dualflow import cohort
from dualflow.cohort import participants, truth_root
from dualflow.commands.make_cohort import finish_cohort, make_cohort
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


def test_another_law_simulates_again(tmp_path, monkeypatch):
    """Finished subjects are kept, until the law changes."""
    written = []

    def write(root, person):
        written.append(person.law)
        file = root / f"sub-{person.label}" / "image"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(person.law)

    monkeypatch.setattr(cohort, "write_subject", write)
    for law in ("regional", "regional", "hard"):
        study = {"name": "x", "results": str(tmp_path)}
        make_cohort(parse_config({"study": study, "cohort": {"subjects": 4, "law": law}}), 0)
    assert written == ["regional"] * 2 + ["hard"] * 2
