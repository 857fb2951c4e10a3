"""Preprocessing: one shard of the scans, then the tables of the whole study."""

from __future__ import annotations

import shutil

from dualflow.config import Config, dump_sections
from dualflow.data.index import read_pairs
from dualflow.data.preprocessing_files import remove_preprocessed, scans_on_disk
from dualflow.data.quarantine import collect, write_quarantine
from dualflow.data.raw_scans import PARALLEL, prepare_scans
from dualflow.data.scan_digests import read_digests
from dualflow.data.scan_files import ScanFiles
from dualflow.inference.conversion_files import remove_files
from dualflow.layout import Scan
from dualflow.manifest import remove_step, write_manifest
from dualflow.modalities import modality
from dualflow.progress import track
from dualflow.temporaries import sweep_temporaries


def preprocess(config: Config, shard: int, workers: int | None = None) -> None:
    """Preprocess one shard of the scans; a scan that cannot be used is excluded with its reason.

    Args:
        config: the study's configuration.
        shard: index of the shard, from 0.
        workers: worker processes; None takes the configuration's number.
    """
    layout, section = config.layout, config.preprocess
    sweep_temporaries(layout.derivatives)
    rows = list(read_pairs(layout).to_dict("records"))[shard :: section.shards]
    scans = [Scan.parse(row["scan"]) for row in rows]
    digests = read_digests(layout.digests)
    scan_files = [ScanFiles.of_row(config.bids, row, config.study, digests) for row in rows]
    tasks = [(layout, scan, files, config.study, section) for scan, files in zip(scans, scan_files, strict=True)]
    for _ in track(prepare_scans(tasks, workers or section.workers), f"preprocess, shard {shard}", len(tasks)):
        pass
    write_manifest(
        layout.manifest(f"preprocess/shard-{shard}"),
        step="preprocess",
        outputs={scan.key: layout.scan_manifest(scan) for scan in scans},
        inputs={},
        config=dump_sections(section.without_folders(), without=("workers",)),
    )


def finish_preprocess(config: Config) -> None:
    """Merge the shards: one quarantine table, and no volumes of scans that have left the index."""
    layout = config.layout
    scans = list(read_pairs(layout)["scan"])
    known = set(scans)
    for scan in scans_on_disk(layout, "scans"):
        if scan.key not in known:
            _remove_scan(config, scan)
    quarantined = collect(layout, scans)
    write_quarantine(layout.quarantine, quarantined)
    write_manifest(
        layout.manifest("preprocess"),
        step="preprocess",
        outputs={scan: layout.scan_manifest(Scan.parse(scan)) for scan in scans} | {"quarantine": layout.quarantine},
        inputs={},
        config=dump_sections(config.preprocess.without_folders(), without=PARALLEL),
        facts={"usable": len(known - {row.scan for row in quarantined}), "excluded": len(quarantined)},
    )


def _remove_scan(config: Config, scan: Scan) -> None:
    """Remove all volumes of a scan, also those that no manifest lists because it was broken or never written."""
    layout, study = config.layout, config.study
    remove_step(layout.scan_manifest(scan))
    remove_preprocessed(layout, scan, study)
    remove_files(layout, scan, modality(study.source), modality(study.target))
    for file in layout.imputed_volumes(scan):
        file.unlink()
    shutil.rmtree(layout.edits(scan), ignore_errors=True)
