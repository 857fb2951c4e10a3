"""The simulated cohort: one shard of its subjects, then the files that describe the dataset."""

from __future__ import annotations

import shutil

from dualflow import cohort
from dualflow.config import Config, dump_sections
from dualflow.layout import Layout
from dualflow.manifest import read_manifest, write_manifest
from dualflow.progress import track


def subjects_of(config: Config) -> list[cohort.Person]:
    """The simulated people of a study of the embedded cohort."""
    section = config.cohort
    return cohort.participants(section.subjects, section.seed, section.law, section.missing_target)


def make_cohort(config: Config, shard: int) -> None:
    """Simulate one shard of the cohort's subjects; finished subjects are skipped."""
    layout = config.layout
    subjects = subjects_of(config)[shard :: config.preprocess.shards]
    manifests = {}
    for subject in track(subjects, f"cohort, shard {shard}"):
        manifest = layout.manifest(f"cohort/sub-{subject.label}")
        identity = {"seed": subject.seed, "law": subject.law, "has_pet": subject.has_pet}
        if read_manifest(manifest, inputs={}, config=identity) is None:
            cohort.write_subject(layout.bids, subject)
            files = {str(file.relative_to(layout.bids)): file for file in cohort.subject_files(layout.bids, subject)}
            write_manifest(manifest, step="cohort", outputs=files, inputs={}, config=identity)
        manifests[subject.label] = manifest
    write_manifest(
        layout.manifest(f"cohort/shard-{shard}"),
        step="cohort",
        outputs=manifests,
        inputs={},
        config=dump_sections(config.cohort),
    )


def finish_cohort(config: Config) -> None:
    """Write the files that describe the whole cohort: participants, dataset description, truth tables."""
    layout, subjects = config.layout, subjects_of(config)
    _remove_surplus(layout, {subject.label for subject in subjects})
    cohort.write_dataset(layout.bids, subjects)
    write_manifest(
        layout.manifest("cohort"),
        step="cohort",
        outputs={str(file.relative_to(layout.bids)): file for file in cohort.dataset_files(layout.bids)},
        inputs={},
        config=dump_sections(config.cohort),
    )


def _remove_surplus(layout: Layout, labels: set[str]) -> None:
    """Remove the subjects of an earlier, larger cohort; participants.tsv does not list them."""
    for parent in (layout.bids, cohort.truth_root(layout.bids)):
        for folder in parent.glob("sub-*"):
            if folder.name.removeprefix("sub-") not in labels:
                shutil.rmtree(folder)
                layout.manifest(f"cohort/{folder.name}").unlink(missing_ok=True)
