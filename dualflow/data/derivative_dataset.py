"""Dataset-level files of BIDS derivatives: description, README and `.bidsignore`."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import fill

from dualflow import __version__
from dualflow.commit import commit_json, commit_text
from dualflow.config import StudyConfig
from dualflow.imaging.sidecar import PROGRAM
from dualflow.layout import TEMPLATE_SPACE, Layout, Scan
from dualflow.modalities import Modality, Normaliser, modality

NOT_BIDS = (
    "benchmarks", "conversion.html", "conversion.tsv", "ct", "figures", "locks", "manifests", "quarantine.tsv",
    "*_regions.json", "*_regions.tsv",
)  # fmt: skip
"""Entries of `.bidsignore`: files that the BIDS standard does not define."""
WIDTH = 100
_ANY_SCAN = Scan("LABEL")
_UNITS: dict[Normaliser, str] = {
    "robust": "no physical unit; 0 and 1 are the 0.5 and 99.5 percentiles inside the brain",
    "white_matter": "no physical unit; 0.5 is the most frequent value of cerebral white matter",
    "suvr": "SUVR, the uptake divided by the mean uptake of the reference region",
    "hounsfield": "Hounsfield units divided by 80, so that 0 to 1 is the brain window",
}


def describe_derivatives(layout: Layout, name: str, study: StudyConfig, *, targets: bool = True) -> dict[str, Path]:
    """Write and return the files that describe the derivatives of dataset `name`, by their names.

    Args:
        layout: of the derivatives.
        name: of the dataset.
        study: its modalities.
        targets: whether the derivatives hold measured and imputed targets, which a conversion does not write.
    """
    files = {name: layout.derivatives / name for name in ("dataset_description.json", "README", ".bidsignore")}
    commit_json(
        files["dataset_description.json"],
        {
            "Name": dataset_title(name),
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "License": "see the source dataset",
            "GeneratedBy": [PROGRAM],
        },
    )
    commit_text(files["README"], derivatives_readme(layout, name, study, targets=targets))
    commit_text(files[".bidsignore"], "\n".join(NOT_BIDS) + "\n")
    return files


def dataset_title(name: str) -> str:
    """Name of the derivatives of dataset `name`."""
    return f"dualflow derivatives of {name}"


def derivatives_readme(layout: Layout, name: str, study: StudyConfig, *, targets: bool = True) -> str:
    """The README of a derivative dataset: its files, their units, and how to trace them; arguments as above."""
    source, target, sources = modality(study.source), modality(study.target), " and ".join(study.sources)
    manifests, quarantine = (
        os.path.relpath(path, layout.derivatives) for path in (layout.manifest("any").parent, layout.quarantine)
    )
    rows = {name: modality(name) for name in study.sources} | {study.target: target.as_target()}
    units = {name: _UNITS[row.normaliser] for name, row in rows.items()}
    preprocessed = ", ".join(study.modalities if targets else study.sources)
    synthetic = "'desc-synth' or 'desc-impute'" if targets else "'desc-synth'"
    paragraphs = [
        dataset_title(name),
        f"dualflow {__version__} wrote this BIDS derivative dataset. It holds preprocessed scans ({preprocessed}), and "
        f"synthetic {study.target} volumes that a model generated from {sources}.",
        "SYNTHETIC VOLUMES ARE NOT MEASUREMENTS",
        f"Files with {synthetic} in their name are synthetic. They show which {study.target} is expected for such "
        f"{sources} images, not the findings of the person. They are for research only, not for clinical use. The JSON "
        'sidecar of each synthetic volume says "Synthetic": true.',
        "FILES",
        "LABEL is a subject label of the source dataset. Names of scans with sessions also have ses-LABEL.",
        *(f"{file}\n{fill(text, WIDTH, initial_indent='    ', subsequent_indent='    ')}" for file, text in
          _files(layout, study, source, target, targets=targets)),
        "Every image has a JSON sidecar of the same name.",
        "UNITS",
        *(f"{study_name}: {unit}." for study_name, unit in units.items()),
        "HOW TO TRACE A FILE",
        f"The sidecar of the preprocessed {study.source} is the record of a scan: names and SHA-256 digests of the raw "
        "files, transforms, intensity scales and quality metrics. The sidecar of a synthetic volume names its model by "
        "name, seed and SHA-256 digest of the weights, the side information and the seed of the samples. The manifests "
        f"in {manifests}/scans and {manifests}/convert list every file with its SHA-256 digest, the digests of its "
        "inputs and the configuration.",
        f"Scans that could not be used are listed with the reason in {quarantine}.",
    ]  # fmt: skip
    return "\n\n".join(text if "\n" in text else fill(text, WIDTH) for text in paragraphs) + "\n"


def _files(
    layout: Layout, study: StudyConfig, source: Modality, target: Modality, *, targets: bool
) -> list[tuple[str, str]]:
    """Example name and description of each kind of file."""
    grid = f"on the model grid, aligned with the template {TEMPLATE_SPACE}"
    native = f"on the grid of the raw {study.source} scan"
    sources = [
        row
        for name in study.sources
        for row in (
            (layout.on_grid(_ANY_SCAN, modality(name)).name, f"Preprocessed {name}, skull-stripped, {grid}."),
            (
                layout.detail(_ANY_SCAN, modality(name)).name,
                f"Standard deviation of the intensities of the {name} within each voxel of the model grid.",
            ),
        )
    ]
    synthetic = {
        "synth": "Synthetic: point estimate",
        "synthmean": "Synthetic: mean of the samples",
        "synthstd": "Synthetic: standard deviation of the samples, the uncertainty of each voxel (of a model without "
        "samples, its error on the validation people, if it had any)",
        "synth01": "Synthetic: one of the samples (the others are synth02, ...)",
        "synthq05": "Synthetic: 5th percentile of the samples, if asked for (also synthq50 and synthq95)",
    }
    measured = [
        (layout.on_grid(_ANY_SCAN, target).name, f"Measured {study.target}, if the scan has one, {grid}."),
        (layout.target_native(_ANY_SCAN, source, target).name, f"Measured {study.target}, if any, {native}."),
    ]
    imputed = [
        (
            layout.imputed_volume(_ANY_SCAN, target, 1).name,
            f"Synthetic: a draw of the {study.target} of a scan without one, for group analyses, {grid} (others are "
            "impute02, ...).",
        )
    ]
    return [
        *sources,
        *(measured if targets else ()),
        (layout.mask_on_grid(_ANY_SCAN, source).name, f"Brain mask {grid}."),
        (layout.mask_native(_ANY_SCAN, source).name, f"Brain mask {native}."),
        *(
            (layout.synthetic(_ANY_SCAN, source, target, desc).name, f"{text}, {native}.")
            for desc, text in synthetic.items()
        ),
        (
            layout.region_table(_ANY_SCAN, source, target).name,
            "Synthetic: mean and 95 % interval of each atlas region and meta-region.",
        ),
        *(imputed if targets else ()),
        *(
            (
                layout.deviation(_ANY_SCAN, source, modality(name)).name,
                f"Deviation of the {name} from the model's training scans, of a scan flagged for it, {native}.",
            )
            for name in (study.source, *study.extra_sources)
        ),
        (f"figures/{layout.figure(_ANY_SCAN, 'qc').name}", "Figure for quality control of the alignment."),
        (f"figures/{layout.figure(_ANY_SCAN, 'synth').name}", f"{study.source}, synthetic {study.target}, its spread."),
        (
            os.path.relpath(layout.conversions, layout.derivatives),
            "Verdict on every converted scan: ok, review, refused or failed, with reasons and figures.",
        ),
    ]
