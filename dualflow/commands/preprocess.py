"""From nothing to preprocessed pairs: cohort, preprocess, collect."""

from __future__ import annotations

import shutil

from dualflow import cohort
from dualflow.commit import read_manifest, sweep_temporaries, write_manifest
from dualflow.config import Config, dump_sections
from dualflow.data.index import read_pairs
from dualflow.data.quarantine import collect, write_quarantine
from dualflow.data.raw_scans import PARALLEL, ScanFiles, describe_derivatives, prepare_scans
from dualflow.layout import Layout, Scan
from dualflow.progress import track


def make_cohort(config: Config, shard: int) -> None:
    """Make one shard of the embedded cohort's people; people who are there and whole are left as they are."""
    layout, seed = config.layout, config.cohort.seed
    people = list(cohort.participants(config.cohort.subjects, seed))[shard :: config.preprocess.shards]
    done = {}
    for person in track(people, f"cohort, part {shard + 1}"):
        manifest = layout.manifest(f"cohort/sub-{person.label}")
        if read_manifest(manifest, inputs={}, config={"seed": seed}) is None:
            cohort.write_subject(layout.bids, person)
            files = {str(file.relative_to(layout.bids)): file for file in cohort.subject_files(layout.bids, person)}
            write_manifest(manifest, step="cohort", outputs=files, inputs={}, config={"seed": seed})
        done[person.label] = manifest
    write_manifest(
        layout.manifest(f"cohort/shard-{shard}"), step="cohort", outputs=done, inputs={}, config={"seed": seed}
    )


def finish_cohort(config: Config) -> None:
    """Write what describes the cohort as a whole: participants, dataset description, truth tables."""
    layout, people = config.layout, cohort.participants(config.cohort.subjects, config.cohort.seed)
    _remove_others(layout, {person.label for person in people})
    cohort.write_dataset(layout.bids, people)
    write_manifest(
        layout.manifest("cohort"),
        step="cohort",
        outputs={"participants": layout.bids / "participants.tsv"},
        inputs={},
        config=dump_sections(config.cohort),
    )


def _remove_others(layout: Layout, labels: set[str]) -> None:
    """Remove people of an earlier, larger cohort, whom the index would take for people nothing is known of."""
    for parent in (layout.bids, cohort.truth_root(layout.bids)):
        for folder in parent.glob("sub-*"):
            if folder.name.removeprefix("sub-") not in labels:
                shutil.rmtree(folder)
                layout.manifest(f"cohort/{folder.name}").unlink(missing_ok=True)


def preprocess(config: Config, shard: int, workers: int | None = None) -> None:
    """Preprocess one shard of the scans; a scan that cannot be used is quarantined with its reason, the rest go on.

    `workers` replaces the configuration's own number of worker processes.
    """
    layout, choice = config.layout, config.preprocess
    sweep_temporaries(layout.derivatives)
    rows = list(read_pairs(layout).to_dict("records"))[shard :: choice.shards]
    scans = [Scan.parse(row["scan"]) for row in rows]
    files = [ScanFiles.of_row(config.bids, row, config.study) for row in rows]
    tasks = [(layout, scan, own, config.study, choice) for scan, own in zip(scans, files, strict=True)]
    for _ in track(prepare_scans(tasks, workers or choice.workers), f"preprocess, part {shard + 1}", len(tasks)):
        pass
    write_manifest(
        layout.manifest(f"preprocess/shard-{shard}"),
        step="preprocess",
        outputs={scan.key: layout.scan_manifest(scan) for scan in scans},
        inputs={},
        config=dump_sections(choice, without=("workers",)),
    )


def finish_preprocess(config: Config) -> None:
    """Gather the shards: one quarantine table, one dataset description."""
    layout = config.layout
    scans = list(read_pairs(layout)["scan"])
    quarantined = collect(layout, scans)
    write_quarantine(layout.quarantine, quarantined)
    describe_derivatives(layout, config.study.name)
    write_manifest(
        layout.manifest("preprocess"),
        step="preprocess",
        outputs={scan: layout.scan_manifest(Scan.parse(scan)) for scan in scans} | {"quarantine": layout.quarantine},
        inputs={},
        config=dump_sections(config.preprocess, without=PARALLEL),
        facts={"usable": len(scans) - sum(row.step != "pairing" for row in quarantined), "set_aside": len(quarantined)},
    )
