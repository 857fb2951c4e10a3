"""From nothing to preprocessed pairs: cohort, index, preprocess, collect."""

from __future__ import annotations

import shutil
import sys

from dualflow import cohort
from dualflow.commit import listing_digest, read_manifest, sweep_temporaries, write_manifest
from dualflow.config import Config
from dualflow.data.index import build_index, read_pairs
from dualflow.data.prepare import describe_derivatives, prepare_scan
from dualflow.data.quarantine import collect, write_quarantine
from dualflow.layout import Layout, Scan
from dualflow.progress import track
from dualflow.steps.common import dump, shard_of


def make_cohort(config: Config, shard: int) -> None:
    """Make one shard of the embedded cohort's people; people who are there and whole are left as they are."""
    layout, seed = config.layout, config.cohort.seed
    people = shard_of(cohort.participants(config.cohort.subjects, seed), shard, config.preprocess.shards)
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
        config=dump(config.cohort),
    )


def _remove_others(layout: Layout, labels: set[str]) -> None:
    """Remove people of an earlier, larger cohort, whom the index would take for people nothing is known of."""
    for parent in (layout.bids, cohort.truth_root(layout.bids)):
        for folder in parent.glob("sub-*"):
            if folder.name.removeprefix("sub-") not in labels:
                shutil.rmtree(folder)
                layout.manifest(f"cohort/{folder.name}").unlink(missing_ok=True)


def make_index(config: Config) -> None:
    """List the usable scans, draw the splits, and say what was found."""
    layout = config.layout
    index = build_index(config.bids, config.study, config.split)
    index.write(layout)
    print(index.summary(), file=sys.stderr)
    write_manifest(
        layout.manifest("index"),
        step="index",
        outputs={"pairs": layout.pairs, "quarantine": layout.index_quarantine},
        inputs={"files": listing_digest(config.bids)},
        config=dump(config.study, config.split),
        facts={"scans": len(index.pairs), "quarantined": len(index.quarantined)},
    )


def preprocess(config: Config, shard: int) -> None:
    """Preprocess one shard of the scans; a scan that cannot be used is quarantined with its reason, the rest go on."""
    layout = config.layout
    sweep_temporaries(layout.derivatives)
    pairs, shards = read_pairs(layout), config.preprocess.shards
    rows = shard_of(list(zip(pairs["scan"], pairs["source"], pairs["target"], strict=True)), shard, shards)
    done = {}
    for key, source, target in track(rows, f"preprocess, part {shard + 1}"):
        scan = Scan.parse(key)
        paths = config.bids / source, config.bids / target if target else None
        prepare_scan(layout, scan, *paths, config.study, config.preprocess)
        done[key] = layout.scan_manifest(scan)
    write_manifest(
        layout.manifest(f"preprocess/shard-{shard}"),
        step="preprocess",
        outputs=done,
        inputs={},
        config=dump(config.preprocess),
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
        config=dump(config.preprocess, without=("shards",)),
        facts={"usable": len(scans) - sum(row.step != "pairing" for row in quarantined), "set_aside": len(quarantined)},
    )
