"""File names and paths of a study: BIDS names, derivatives, models, tables.

All results of a study lie under `Layout.root`:

    bids/            the embedded cohort, for a study without a dataset
    index/           pairs.tsv, quarantine.tsv, splits.tsv, summary.md; digests.tsv caches digests of raw files
    derivatives/     BIDS derivatives: preprocessed pairs on the model grid and in native space, synthetic volumes
    models/MODEL/seed-S/   checkpoints, history, model card
    models/.closed_form/   cache of closed-form fits
    metrics/         tables written by evaluation
    figures/         main figures of the report, for `snakemake --report`
    compare/         plan.json: optimiser steps of each model at an equal budget
    compare/split/   the study of a comparison without folds, with all of these folders
    compare/folds-K/fold-F/   the study of one fold of a comparison
    imputation/      regions.tsv: measured and drawn region values of every scan; replicates for standard errors
    analyses/NAME/   tables and figures of a group analysis
    edits/SCAN/COLUMN/     a measured target under other side information
    pending/         tracking records queued while the server is unreachable
    manifests/       one file per finished step, the outputs that Snakemake knows
    configs/         the resolved configurations
    logs/ benchmarks/      text and timings
    locks/           one file per step, locked by the process that works on it
    quarantine.tsv quality.tsv qc.html report.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dualflow.errors import DataError
from dualflow.modalities import Modality

TEMPLATE_SPACE = "MNI152NLin2009aSym"
LABEL = re.compile(r"^[A-Za-z0-9]+$")
STUDY_NAME = re.compile(r"^[A-Za-z0-9_-]+$")


@dataclass(frozen=True, order=True)
class Scan:
    """A subject at one session: the unit of preprocessing and conversion. Splits are by `subject`.

    Attributes:
        subject: BIDS subject label, without `sub-`.
        session: BIDS session label, without `ses-`; None if the study has no sessions.
    """

    subject: str
    session: str | None = None

    def __post_init__(self) -> None:
        for label in (self.subject, self.session):
            if label is not None and not LABEL.match(label):
                raise DataError(f"label '{label}' is not a BIDS label; use letters and digits only")

    @property
    def key(self) -> str:
        """`sub-01` or `sub-01_ses-02`."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def folder(self) -> Path:
        """`sub-01` or `sub-01/ses-02`."""
        return Path(f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else []))

    @classmethod
    def parse(cls, key: str) -> Scan:
        """The scan with a `key`.

        Raises:
            DataError: the key is not of the form `sub-LABEL[_ses-LABEL]`.
        """
        match = re.fullmatch(r"sub-([A-Za-z0-9]+)(?:_ses-([A-Za-z0-9]+))?", key)
        if match is None:
            raise DataError(f"scan '{key}' is not of the form sub-LABEL or sub-LABEL_ses-LABEL")
        return cls(match[1], match[2])


def training_key(model: str, seed: int) -> str:
    """Key of a training in the names of its steps and tables, such as `unet_seed-0`."""
    return f"{model}_seed-{seed}"


def bids_path(
    root: Path,
    scan: Scan,
    row: Modality,
    *,
    suffix: str | None = None,
    space: str | None = None,
    res: str | None = None,
    desc: str | None = None,
) -> Path:
    """Path of an image of `scan` in a BIDS dataset, with entities in the standard's order.

    `suffix` replaces that of the modality, for example for a mask.
    """
    suffix = suffix or row.suffix
    entities = {"trc": row.tracer if suffix == row.suffix else None, "space": space, "res": res, "desc": desc}
    name = "_".join([scan.key, *(f"{key}-{value}" for key, value in entities.items() if value), suffix])
    return root / scan.folder / row.datatype / f"{name}.nii.gz"


def truth_path(bids: Path, scan: Scan, row: Modality, desc: str) -> Path:
    """A volume of the embedded cohort's ground truth, on the target's grid; `desc` is noisefree or expected."""
    return bids_path(bids / "derivatives" / "truth", scan, row, desc=desc)


def study_mask_paths(masks: Path, scan: Scan, source: Path, row: Modality) -> list[Path]:
    """Possible paths of the brain mask of a scan's `source` in a BIDS derivative dataset, the most specific first.

    A mask has the entities of its image, except in pipelines that merge runs. Some pipelines name the space.
    """
    stem, folder = source.name.split(".")[0], masks / scan.folder / row.datatype
    image_prefix = [stem.removesuffix(f"_{row.suffix}")] if stem.startswith(f"{scan.key}_") else []
    spaces = ("", f"_space-{row.suffix}", "_space-orig")
    prefixes = dict.fromkeys([*image_prefix, scan.key])
    names = [f"{prefix}{space}_desc-brain_mask" for prefix in prefixes for space in spaces]
    return [folder / (name + extension) for name in names for extension in (".nii.gz", ".nii")]


SIDECAR_LEVELS = 4
"""Folders whose sidecars may apply to a BIDS file: datatype, session, subject, and the dataset's root."""


def sidecar_path(path: Path) -> Path:
    """The JSON sidecar beside an image or a table."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".tsv") + ".json")


@dataclass(frozen=True)
class Layout:
    """The paths of a study.

    Attributes:
        root: folder of the study's results.
        derivatives_folder: folder of the BIDS derivative dataset below `root`; `.` if `root` is that dataset.
    """

    root: Path
    derivatives_folder: str = "derivatives/dualflow"

    def resolved_config(self, digest: str) -> Path:
        """The complete configuration of a run, with its defaults."""
        return self.root / "configs" / f"{digest}.json"

    @property
    def bids(self) -> Path:
        """The embedded cohort's BIDS dataset."""
        return self.root / "bids"

    @property
    def derivatives(self) -> Path:
        """The BIDS derivative dataset of preprocessed and synthetic volumes."""
        return self.root / self.derivatives_folder

    @property
    def pairs(self) -> Path:
        """Table of the usable scans: paths, side information, split."""
        return self.root / "index" / "pairs.tsv"

    @property
    def index_quarantine(self) -> Path:
        """Table of the scans that the index excluded."""
        return self.root / "index" / "quarantine.tsv"

    @property
    def splits(self) -> Path:
        """Table of the subjects with a pair: fold, split and strata."""
        return self.root / "index" / "splits.tsv"

    @property
    def study_summary(self) -> Path:
        """The summary of the index, as Markdown."""
        return self.root / "index" / "summary.md"

    @property
    def digests(self) -> Path:
        """Table of cached digests of the raw files."""
        return self.root / "index" / "digests.tsv"

    @property
    def quarantine(self) -> Path:
        """Table of the excluded scans, each with its step and reason."""
        return self.root / "quarantine.tsv"

    @property
    def quality(self) -> Path:
        """Table of the quality metrics and flags of every preprocessed scan."""
        return self.root / "quality.tsv"

    @property
    def qc(self) -> Path:
        """The quality control page: a figure and the quality metrics of every scan."""
        return self.root / "qc.html"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def tables(self) -> Path:
        """Folder of the tables written by evaluation."""
        return self.root / "metrics"

    def table(self, name: str) -> Path:
        """A table written by evaluation."""
        return self.tables / f"{name}.tsv"

    def error_map(self, kind: str, name: str, seed: int) -> Path:
        """Map over the test people on the model grid; `kind` is `bias` (signed) or `error` (absolute)."""
        return self.tables / f"{kind}_{training_key(name, seed)}.nii.gz"

    @property
    def figures(self) -> Path:
        """Folder of the report's main figures."""
        return self.root / "figures"

    def report_figure(self, name: str) -> Path:
        """A figure of the report as a file."""
        return self.figures / f"{name}.png"

    @property
    def other_figures(self) -> Path:
        """Folder of the figures of the report that not every study has."""
        return self.figures / "others"

    def stress(self, name: str, seed: int) -> Path:
        """Table of a flow's stress test."""
        return self.table(f"stress_{training_key(name, seed)}")

    def downstream(self, name: str, seed: int) -> Path:
        """Table of a model's downstream classification."""
        return self.table(f"downstream_{training_key(name, seed)}")

    def page(self, name: str) -> Path:
        """The table `name` as Markdown."""
        return self.table(name).with_suffix(".md")

    def bench_study(self, name: str, number: int) -> Path:
        """Estimates of one simulated study of a benchmark."""
        return self.table(f"{name}_studies/{number:04d}")

    def bench_training(self, name: str) -> Path:
        """Folder of the states of one training of a benchmark."""
        return self.root / "benchmarks" / name

    @property
    def imputed_regions(self) -> Path:
        """Table of the measured and drawn values of every region and scan."""
        return self.root / "imputation" / "regions.tsv"

    @property
    def imputation_replicates(self) -> Path:
        """How the drawn values change without each subject."""
        return self.imputed_regions.with_name("replicates.safetensors")

    def imputed_volume(self, scan: Scan, target: Modality, draw: int) -> Path:
        """A draw of a target that was not measured, on the model grid."""
        desc = f"impute{draw:02d}"
        return bids_path(self.derivatives, scan, target, space=TEMPLATE_SPACE, res="model", desc=desc)

    def imputed_volumes(self, scan: Scan | None = None) -> list[Path]:
        """All files of such draws, sidecars included, of one scan or of every one."""
        pattern = f"{scan.folder}/*/{scan.key}_*" if scan else "sub-*/**/*_"
        return sorted(self.derivatives.glob(f"{pattern}desc-impute*"))

    def analysis(self, name: str) -> Path:
        """Folder of a group analysis."""
        return self.root / "analyses" / name

    def edit(self, scan: Scan, column: str) -> Path:
        """Folder of the images of a scan under other values of a side column."""
        return self.edits(scan) / column

    def edits(self, scan: Scan) -> Path:
        """Folder of all edits of a scan."""
        return self.root / "edits" / scan.key

    @property
    def comparison_plan(self) -> Path:
        """Optimiser steps of each model in a comparison at an equal budget."""
        return self.root / "compare" / "plan.json"

    def fold_pending_records(self) -> list[Path]:
        """Folders of the tracking records of the studies of all comparisons."""
        folders = ("compare/split", "compare/folds-*/fold-*")
        return sorted(path for folder in folders for path in self.root.glob(f"{folder}/{self.root.name}/pending"))

    @property
    def compared_split(self) -> Path:
        """Parent folder of the study of a comparison over the study's own split."""
        return self.root / "compare" / "split"

    def fold(self, count: int, fold: int) -> Path:
        """Parent folder of the study of one fold of a comparison over `count` folds."""
        return self.root / "compare" / f"folds-{count}" / f"fold-{fold}"

    def on_grid(self, scan: Scan, row: Modality) -> Path:
        """A preprocessed volume on the model grid, normalised and masked."""
        return bids_path(self.derivatives, scan, row, space=TEMPLATE_SPACE, res="model", desc="preproc")

    def detail(self, scan: Scan, row: Modality) -> Path:
        """The detail of a preprocessed source on the model grid."""
        return bids_path(self.derivatives, scan, row, space=TEMPLATE_SPACE, res="model", desc="detail")

    def mask_on_grid(self, scan: Scan, source: Modality) -> Path:
        """The brain mask on the model grid."""
        return bids_path(self.derivatives, scan, source, suffix="mask", space=TEMPLATE_SPACE, res="model", desc="brain")

    def mask_native(self, scan: Scan, source: Modality) -> Path:
        """The brain mask on the grid of the raw source."""
        return bids_path(self.derivatives, scan, source, suffix="mask", space=source.suffix, desc="brain")

    def target_native(self, scan: Scan, source: Modality, target: Modality) -> Path:
        """The measured target, normalised, on the grid of the raw source."""
        return bids_path(self.derivatives, scan, target, space=source.suffix, desc="preproc")

    def record(self, scan: Scan, source: Modality) -> Path:
        """The JSON record beside the preprocessed source: transforms, intensities, quality, hashes."""
        return sidecar_path(self.on_grid(scan, source))

    def synthetic(self, scan: Scan, source: Modality, target: Modality, desc: str) -> Path:
        """A synthetic volume on the grid of the raw source; `desc` is synth, synthmean, synthstd or synth01, ..."""
        return bids_path(self.derivatives, scan, target, space=source.suffix, desc=desc)

    def region_table(self, scan: Scan, source: Modality, target: Modality) -> Path:
        """Table of the predicted means of a scan's regions."""
        volume = self.synthetic(scan, source, target, "synth")
        return volume.with_name(volume.name.replace(f"_{target.suffix}.nii.gz", "_regions.tsv"))

    def deviation(self, scan: Scan, source: Modality, of: Modality) -> Path:
        """Deviation of one of the sources from the training scans, on the grid of the main source."""
        return bids_path(self.derivatives, scan, of, space=source.suffix, desc="deviation")

    @property
    def conversions(self) -> Path:
        """Table of the verdicts on every scan of a conversion."""
        return self.root / "conversion.tsv"

    @property
    def conversion_page(self) -> Path:
        """The page of a conversion: verdicts, reasons, pictures."""
        return self.root / "conversion.html"

    def conversion_seconds(self, scan: Scan) -> Path:
        """Seconds of a scan's conversion, without its preprocessing."""
        return self.root / "benchmarks" / "conversions" / f"{scan.key}.json"

    def figure(self, scan: Scan, name: str) -> Path:
        """A figure of one scan, for quality control."""
        return self.derivatives / f"sub-{scan.subject}" / "figures" / f"{scan.key}_{name}.jpg"

    def model(self, name: str, seed: int) -> Path:
        """Folder of one trained model."""
        return self.root / "models" / name / f"seed-{seed}"

    @property
    def closed_form_cache(self) -> Path:
        """Folder of closed-form fits that several trainings share."""
        return self.root / "models" / ".closed_form"

    @property
    def pending_records(self) -> Path:
        """Folder of the tracking records queued while the server is unreachable."""
        return self.root / "pending"

    def manifest(self, step: str) -> Path:
        """The manifest of a finished step."""
        return self.root / "manifests" / f"{step}.json"

    def training_manifest(self, name: str, seed: int) -> Path:
        """The manifest of a finished training."""
        return self.manifest(f"train/{training_key(name, seed)}")

    def scan_manifest(self, scan: Scan) -> Path:
        """The manifest of a scan that is preprocessed or excluded."""
        return self.manifest(f"scans/{scan.key}")

    def scan_seconds(self, scan: Scan) -> Path:
        """Seconds of each step of a scan's preprocessing."""
        return self.root / "benchmarks" / "scans" / f"{scan.key}.json"

    def log(self, step: str) -> Path:
        """A step's log."""
        return self.root / "logs" / f"{step}.log"

    def lock(self, step: str) -> Path:
        """The lock of a step."""
        return self.root / "locks" / f"{step}.lock"

    def benchmark(self, step: str) -> Path:
        """A step's wall time and peak memory, measured by Snakemake."""
        return self.root / "benchmarks" / f"{step}.tsv"
