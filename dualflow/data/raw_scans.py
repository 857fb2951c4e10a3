"""Raw scans to the model grid, or into quarantine: what the workflow and a batch conversion do with each scan."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dualflow.commit import commit_json, commit_text, digest_of, sha256, sweep_temporaries
from dualflow.config import PreprocessConfig, StudyConfig
from dualflow.data.bids_files import find_mask
from dualflow.data.quarantine import FACT, Quarantine
from dualflow.errors import CommitError, DualflowError
from dualflow.imaging.nifti_header import check_header
from dualflow.imaging.outputs import write_pair
from dualflow.imaging.pipeline import preprocess_pair
from dualflow.imaging.sidecar import read_sidecar
from dualflow.imaging.volume import check_scan
from dualflow.layout import NOT_BIDS, Layout, Scan, derivative_description
from dualflow.manifest import read_manifest, write_manifest
from dualflow.modalities import modality
from dualflow.workers import CrashedTask, run_in_workers

STEP = "preprocess"
PARALLEL = ("shards", "workers")
"""Fields of the configuration that say how many share the work; they change no result."""


@dataclass(frozen=True)
class ScanFiles:
    """The raw files of one scan.

    Attributes:
        source: image of the source modality.
        target: image of the target modality; None where there is none.
        extra: images of the further source modalities, by name.
        mask: the study's own brain mask; None where it has none.
    """

    source: Path
    target: Path | None = None
    extra: Mapping[str, Path] = field(default_factory=dict)
    mask: Path | None = None

    @classmethod
    def of_row(cls, root: Path, row: Mapping[Any, Any], study: StudyConfig) -> Self:
        """The files that a row of the index names; `root` is the dataset.

        Raises:
            DataError: the folder of the study's own masks is not there.
        """
        source, target = root / row["source"], root / row["target"] if row["target"] else None
        extra = {name: root / row[f"source_{name}"] for name in study.extra_sources}
        return cls(source, target, extra, find_mask(study, Scan.parse(row["scan"]), source))

    @property
    def images(self) -> dict[str, Path]:
        """The files that there are, by role."""
        others = {name: path for name, path in (("target", self.target), ("mask", self.mask)) if path}
        return {"source": self.source, **self.extra, **others}

    def digests(self) -> dict[str, str]:
        """What identifies the contents of the images and of the sidecars that hold for them, by name.

        Raises:
            OSError: an image cannot be read.
            DataError: an image is refused by its header, or a sidecar cannot be used.
        """
        for path in self.images.values():
            check_header(path, 4, series=True)  # before it is hashed, for a file may claim to be of any size
        sidecars = {f"{name}_sidecar": digest_of(read_sidecar(path)) for name, path in self.images.items()}
        return {name: sha256(path) for name, path in self.images.items()} | sidecars


Task = tuple[Layout, Scan, ScanFiles, StudyConfig, PreprocessConfig]


def describe_derivatives(layout: Layout, name: str) -> None:
    """Write what makes the derivatives of study `name` a valid BIDS dataset."""
    commit_json(layout.derivatives / "dataset_description.json", derivative_description(name))
    commit_text(layout.derivatives / ".bidsignore", "\n".join(NOT_BIDS) + "\n")


def prepare_scans(tasks: Sequence[Task], workers: int = 1) -> Iterator[Quarantine | None]:
    """Do `prepare_scan` with each task in worker processes; yield what it returns, in the order in which they end.

    Raises:
        CommitError: an output cannot be written.
    """
    for place, outcome in run_in_workers(prepare_scan, tasks, workers):
        if isinstance(outcome, CrashedTask):
            layout, scan, files, study, config = tasks[place]
            # What the process was writing when it ended.
            sweep_temporaries(layout.derivatives / scan.folder)
            yield _set_aside(layout, scan, f"{files.source.name}: {outcome.reason}", {}, _section(study, config))
        else:
            yield outcome


def prepare_scan(
    layout: Layout, scan: Scan, files: ScanFiles, study: StudyConfig, config: PreprocessConfig
) -> Quarantine | None:
    """Preprocess a scan unless that is done and unchanged; return why it was set aside, or None.

    Whatever is wrong with a scan sets that scan aside and nothing else; only an output that cannot be written stops.

    Raises:
        CommitError: an output cannot be written.
    """
    manifest, section, inputs = layout.scan_manifest(scan), _section(study, config), dict[str, str]()
    source_row, target_row = modality(study.source), modality(study.target)
    try:
        inputs = files.digests()
        if (done := read_manifest(manifest, inputs=inputs, config=section)) is not None:
            return Quarantine.of_manifest(scan.key, done)
        for path in files.images.values():  # before the long work on the first of them
            check_scan(path)
        pair = preprocess_pair(
            files.source, files.target, source_row, target_row, config, extra=files.extra, mask=files.mask
        )
        with pair.clock("write"):
            outputs = write_pair(pair, layout, scan, source_row, target_row)
        # Apart from what is hashed: equal scans have equal manifests, and models trained on them one identity.
        commit_json(layout.scan_seconds(scan), {step: round(time, 2) for step, time in pair.clock.seconds.items()})
    except CommitError:  # a full disk is no fault of the scan
        raise
    except DualflowError as error:
        return _set_aside(layout, scan, str(error), inputs, section)
    except Exception as error:  # one bad scan must not take the others down, whatever is wrong with it
        return _set_aside(layout, scan, f"{files.source.name}: {type(error).__name__}: {error}", {}, section)
    facts = {"quality": pair.record["quality"]}
    write_manifest(manifest, step=STEP, outputs=outputs, inputs=inputs, config=section, facts=facts)
    return None


def _set_aside(
    layout: Layout, scan: Scan, reason: str, inputs: Mapping[str, str], section: Mapping[str, Any]
) -> Quarantine:
    """Write down why a scan was set aside; without `inputs`, it will be tried again when next asked for."""
    refused = Quarantine(scan.key, STEP, reason)
    print(f"{scan.key}: set aside: {refused.reason}", file=sys.stderr)
    facts = {FACT: refused.fact()}
    write_manifest(layout.scan_manifest(scan), step=STEP, outputs={}, inputs=inputs, config=section, facts=facts)
    return refused


def _section(study: StudyConfig, config: PreprocessConfig) -> dict[str, Any]:
    """What the result of preprocessing a scan depends on beside its files."""
    chosen: dict[str, Any] = {
        "source": study.source,
        "extra_sources": list(study.extra_sources),
        "target": study.target,
    }
    region = Path(config.reference_region)
    if region.is_file():  # a mask of the study's own: its content counts, not its name
        chosen |= {"reference_mask": sha256(region)}
    return config.model_dump(mode="json", exclude=set(PARALLEL)) | chosen
