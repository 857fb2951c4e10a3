"""Preprocessing of raw scans, and exclusion of unusable ones; shared by the workflow and batch conversion."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualflow.commit import commit_json
from dualflow.config import PreprocessConfig, StudyConfig
from dualflow.data.preprocessing_files import preprocessing_files, remove_preprocessed
from dualflow.data.quarantine import FACT, Quarantine
from dualflow.data.scan_files import ScanFiles, input_digests
from dualflow.digests import sha256
from dualflow.errors import CommitError, DualflowError
from dualflow.imaging.raw_image import check_scan
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.manifest import TRANSIENT, read_manifest, remove_outputs, write_manifest
from dualflow.modalities import modality
from dualflow.temporaries import sweep_temporaries
from dualflow.workers import CrashedTask, call_within, run_in_workers

STEP = "preprocess"
PARALLEL = ("shards", "workers", "deadline_s")
"""Fields of the configuration that divide and bound the work; they change no result."""
TRANSIENT_ERRORS = {errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT}
"""System errors of a disk that may come back."""
PERMANENT = "permanent"
"""Key in the facts of an excluded scan's manifest: whether another attempt would have the same result."""


def current_manifest(
    layout: Layout, scan: Scan, inputs: Mapping[str, str], study: StudyConfig, config: PreprocessConfig
) -> dict[str, Any] | None:
    """Manifest of a scan that is preprocessed or excluded with these inputs and this configuration, else None."""
    return read_manifest(layout.scan_manifest(scan), inputs=inputs, config=preprocess_section(study, config))


Task = tuple[Layout, Scan, ScanFiles, StudyConfig, PreprocessConfig]


def prepare_scans(tasks: Sequence[Task], workers: int = 1) -> Iterator[Quarantine | None]:
    """Run `prepare_scan` on each task in worker processes; yield the results in the order in which they finish.

    Raises:
        CommitError: an output cannot be written.
    """
    timed = [
        (config.deadline_s, prepare_scan, layout, scan, files, study, config)
        for layout, scan, files, study, config in tasks
    ]
    for index, outcome in run_in_workers(call_within, timed, workers):
        if isinstance(outcome, CrashedTask):
            layout, scan, files, study, config = tasks[index]
            # Remove the temporary files of the crashed process.
            sweep_temporaries(layout.derivatives / scan.folder)
            yield _exclude(layout, scan, study, config, f"{files.source.name}: {outcome.reason}")
        else:
            yield outcome


def prepare_scan(
    layout: Layout, scan: Scan, files: ScanFiles, study: StudyConfig, config: PreprocessConfig
) -> Quarantine | None:
    """Preprocess a scan unless that is done and unchanged; return why it was excluded, or None.

    A defect of a scan excludes that scan alone; only an output that cannot be written is an error.

    Raises:
        CommitError: an output cannot be written.
    """
    # Imported in the workers only, so that the parent process starts quickly.
    from dualflow.imaging.outputs import write_pair
    from dualflow.imaging.pipeline import preprocess_pair

    manifest, inputs = layout.scan_manifest(scan), dict[str, str]()
    source_row, target_row = modality(study.source), modality(study.target)
    try:
        images = files.open()
        inputs = input_digests(images)
        if (record := current_manifest(layout, scan, inputs, study, config)) is not None:
            return Quarantine.of_manifest(scan.key, record)
        rows = {"source": source_row, "target": target_row, **{name: modality(name) for name in files.extra}}
        for role, image in images.items():  # before any long computation
            check_scan(image.path, image.digest, skip_nan=role in rows and rows[role].never_zero)
        pair = preprocess_pair(
            images["source"],
            images.get("target"),
            source_row,
            target_row,
            config,
            extra={name: images[name] for name in files.extra},
            mask=images.get("mask"),
        )
        with pair.clock("write"):
            outputs = write_pair(pair, layout, scan, source_row, target_row)
        # Not in the manifest, because its digest is part of the identity of trained models.
        commit_json(layout.scan_seconds(scan), pair.clock.rounded())
    except CommitError:  # a full disk is no defect of the scan
        raise
    except DualflowError as error:
        code = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        known = inputs if code is None else {}
        reason = files.without_folders(str(error), Path(config.reference_region))
        permanent, transient = code is None, code in TRANSIENT_ERRORS
        return _exclude(layout, scan, study, config, reason, known, permanent=permanent, transient=transient)
    except Exception as error:  # a defective scan must not stop the others
        text = f"{files.source.name}: {type(error).__name__}: {error}"
        reason = files.without_folders(text, Path(config.reference_region))
        return _exclude(layout, scan, study, config, reason)
    facts, section = {"quality": pair.record["quality"]}, preprocess_section(study, config)
    # A target that is excluded now must not stay beside the others, whether or not a manifest lists it.
    remove_outputs(manifest, keep=outputs.values())
    for file in {*preprocessing_files(layout, scan, study)} - {*outputs.values(), *map(sidecar_path, outputs.values())}:
        file.unlink(missing_ok=True)
    write_manifest(manifest, step=STEP, outputs=outputs, inputs=inputs, config=section, facts=facts)
    return None


def _exclude(
    layout: Layout,
    scan: Scan,
    study: StudyConfig,
    config: PreprocessConfig,
    reason: str,
    inputs: Mapping[str, str] | None = None,
    *,
    permanent: bool = False,
    transient: bool = False,
) -> Quarantine:
    """Record why a scan is excluded, and remove its volumes.

    Without `inputs`, the next preprocessing tries it again; with `transient`, the next run starts one.
    """
    quarantine = Quarantine(scan.key, STEP, reason)
    print(f"{scan.key}: excluded: {quarantine.reason}", file=sys.stderr)
    facts = {FACT: quarantine.fact(), PERMANENT: permanent, **({TRANSIENT: True} if transient else {})}
    manifest, section = layout.scan_manifest(scan), preprocess_section(study, config)
    # No manifest would list the volumes of this or an earlier run, so no later run could use or remove them.
    remove_outputs(manifest)
    remove_preprocessed(layout, scan, study)
    write_manifest(manifest, step=STEP, outputs={}, inputs=inputs or {}, config=section, facts=facts)
    return quarantine


def is_excluded_for_good(layout: Layout, scan: Scan) -> bool:
    """Whether a scan is excluded for a reason that another attempt would find again, unlike a disk that is away."""
    manifest = read_manifest(layout.scan_manifest(scan), verify=False)
    return manifest is not None and bool(manifest.get("facts", {}).get(PERMANENT))


def preprocess_section(study: StudyConfig, config: PreprocessConfig) -> dict[str, Any]:
    """The configuration that the result of preprocessing a scan depends on."""
    section: dict[str, Any] = {
        "source": study.source,
        "extra_sources": list(study.extra_sources),
        "target": study.target,
    }
    region = Path(config.reference_region)
    if region.is_file():  # the digest of the study's mask replaces its name
        section |= {"reference_mask": sha256(region)}
    return config.without_folders().model_dump(mode="json", exclude=set(PARALLEL)) | section
