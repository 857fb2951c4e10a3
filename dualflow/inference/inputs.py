"""The inputs of a conversion: images, a BIDS dataset, a table of samples or DICOM folders become rows of scans."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dualflow.config import StudyConfig, checked
from dualflow.data.bids_files import EXTENSIONS, natural_order, scans_without_mask
from dualflow.data.index import STEP, list_scans
from dualflow.data.output_names import scans_with_long_names
from dualflow.data.participants import Declaration, known_columns
from dualflow.data.quarantine import Quarantine
from dualflow.data.side_encoder import Categorical
from dualflow.data.tsv import cell_text, read_table, summarise_names
from dualflow.errors import ConfigError, DataError, printable
from dualflow.imaging.sidecar import read_object
from dualflow.inference.dicom import convert_dicom, is_dicom_folder
from dualflow.inference.image_files import ANYWHERE, check_replaced, label_images, origin_of, scan_rows
from dualflow.inference.output_folder import DESCRIPTION, UNNAMED, check_files_outside, check_output, check_target
from dualflow.inference.selection import Selection
from dualflow.inference.side_options import side_cells, side_notes
from dualflow.layout import Scan
from dualflow.modalities import REFERENCES, modality
from dualflow.models.card import ModelCard

EXPECTED = "a NIfTI image (.nii, .nii.gz), a BIDS dataset, a table of samples (.tsv) or a folder of DICOM files"
_GLOB = set("*?[")
_MAX_NAME = 200


@dataclass(frozen=True)
class ConvertInputs:
    """The scans to convert.

    Attributes:
        root: folder that the paths in `rows` are relative to.
        rows: one row per scan, as `Index.pairs`: the target is '', the split `convert`.
        quarantined: the scans that are excluded already, sorted.
        notes: lines for the console alone: series of DICOM, unknown side information, and people without scans or
            without a row.
        study: modalities, side columns and masks of the scans.
        name: name of the dataset in the description of the outputs.
        origin: whose results the scans may replace, as in `check_replaced`.
    """

    root: Path
    rows: pd.DataFrame
    quarantined: Sequence[Quarantine]
    notes: Sequence[str]
    study: StudyConfig
    name: str = UNNAMED
    origin: str | None = None


def expand_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """The files and folders of the inputs, in order and without duplicates; patterns such as `data/*.nii.gz` expand.

    Links of different names to one file are two images, because their names are the scans' labels.

    Raises:
        DataError: there is no input, one does not exist, or no file matches a pattern.
    """
    if not inputs:
        raise DataError(f"there is no INPUT; name {EXPECTED}")
    paths: dict[Path, Path] = {}
    for text in map(str, inputs):
        try:
            matches = _existing(text)
        except OSError as error:  # a folder that may not be read, a name that is too long
            raise DataError(f"INPUT {text} cannot be looked up ({error.strerror}); name {EXPECTED}") from error
        for match in matches:
            same = match.resolve() if match.is_dir() else Path(os.path.abspath(match))  # noqa: PTH100 - removes `..`
            paths.setdefault(same, match)
    return list(paths.values())


def _existing(text: str) -> list[Path]:
    path = Path(text).expanduser()
    matches = [path] if path.exists() or not _GLOB & set(text) else _matches(path)
    if not matches:
        raise DataError(f"no file matches INPUT {text}; check the pattern")
    for match in matches:
        if not match.exists():
            raise DataError(f"INPUT {match} does not exist; name {EXPECTED}")
    return matches


def resolve_inputs(
    paths: Sequence[Path], card: ModelCard, out: Path, model: Path, dicom: Path, selection: Selection | None = None
) -> ConvertInputs:
    """The scans of the inputs of a conversion; only DICOM folders write something.

    Args:
        paths: files and folders of one kind; of datasets and tables, one.
        card: card of the model.
        out: output folder, which is checked first.
        model: folder of the model.
        dicom: folder for NIfTI images from DICOM.
        selection: what to convert; everything by default.

    Raises:
        ConfigError: the output overlaps an input, or is of another target; an option does not fit the inputs or the
            model; or the model's sources need a mask of its study.
        DataError: an input cannot be used, or would replace the results of another one.
    """
    selection = selection or Selection()
    _require_known_reference(card)
    kinds = [_kind(path) for path in paths]
    kind = kinds[0]
    for path, other in zip(paths, kinds, strict=True):
        if other != kind:
            raise ConfigError(f"INPUT {paths[0]} is {_ARTICLES[kind]}, but {path} is {_ARTICLES[other]}; name one kind")
    if kind in ("dataset", "table") and len(paths) > 1:
        raise ConfigError(f"INPUT names {len(paths)} {kind}s, expected one; convert each to its own output folder")
    check_output(out, [*paths, *([selection.masks] if selection.masks else [])], model)
    check_target(out, card.study.target)
    if unused := sorted(selection.where.keys() - {card.study.source, *card.study.extra_sources}):
        sources = ", ".join((card.study.source, *card.study.extra_sources))
        raise ConfigError(f"where names {', '.join(unused)}, expected source modalities of the model: {sources}")
    if kind in ("dataset", "table"):
        return _dataset_inputs(paths[0], kind, card, out, selection)
    return _image_inputs(paths, kind, card, out, dicom, selection)


def _require_known_reference(card: ModelCard) -> None:
    """Check that the reference region of a PET source is one of the atlas: a model holds no mask of its study."""
    region, sources = card.preprocess.reference_region, (card.study.source, *card.study.extra_sources)
    scaled = [name for name in sources if modality(name).normaliser == "suvr"]
    if scaled and region not in REFERENCES:
        raise ConfigError(
            f"the model's source {scaled[0]} was divided by its mean in {region}, a mask that is not in the model; "
            "convert its scans in the study itself, or train with preprocess.reference_region one of: "
            f"{', '.join(REFERENCES)}"
        )


def _mask_notes(study: StudyConfig, rows: pd.DataFrame, lacking: Sequence[str]) -> list[str]:
    """A line on the scans in `rows` that are `lacking` a mask."""
    keys = list(rows["scan"][rows["scan"].isin(list(lacking))])
    count = f"{len(keys)} of {len(rows)} scans ({summarise_names(keys)})"
    return [f"no mask in {study.masks} for {count}; deepbet's are used"] if keys else []


Kind = Literal["image", "dataset", "table", "DICOM folder"]
_ARTICLES: dict[Kind, str] = {
    "image": "an image", "dataset": "a BIDS dataset", "table": "a table", "DICOM folder": "a DICOM folder"
}  # fmt: skip


def _kind(path: Path) -> Kind:
    if path.is_dir():
        subjects = [folder for folder in path.glob("sub-*") if folder.is_dir()]
        if subjects and (any(path.glob("sub-*/**/*.nii*")) or not any(map(is_dicom_folder, subjects))):
            return "dataset"
        if is_dicom_folder(path):
            return "DICOM folder"
        image = next(path.rglob("*.nii*"), None)
        hint = f"; name its images, such as '{image.parent}/*.nii.gz'" if image else ""
        if path.name.startswith("sub-"):
            hint = f"; for a subject of a dataset, name the dataset and --participant-label {path.name[4:]}"
        raise DataError(f"{path}: holds no sub-* folder and no DICOM file, expected {EXPECTED}{hint or '; check it'}")
    if path.name.endswith(EXTENSIONS):
        return "image"
    if path.suffix in (".tsv", ".txt"):
        return "table"
    raise DataError(f"{path}: expected {EXPECTED}; convert the file, or save a table with tabs as .tsv")


def _matches(pattern: Path) -> list[Path]:
    """Paths that match a pattern, in natural order."""
    names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [Path(name) for name in sorted(names, key=natural_order)]


def _image_inputs(
    paths: Sequence[Path], kind: Kind, card: ModelCard, out: Path, dicom: Path, selection: Selection
) -> ConvertInputs:
    """Scans of images or DICOM folders, which have no table."""
    if card.study.extra_sources:
        sources = " and ".join((card.study.source, *card.study.extra_sources))
        raise ConfigError(
            f"the model needs {sources} of each scan, but {paths[0]} is {_ARTICLES[kind]}; name a BIDS dataset or a "
            "table of samples"
        )
    bids_only = {
        "--participant-label": selection.participants, "--session-label": selection.sessions,
        "--where": selection.where, "--runs": selection.runs != "refuse",
    }  # fmt: skip
    if used := [option for option, value in bids_only.items() if value]:
        raise ConfigError(f"{used[0]} selects files of a dataset, but {paths[0]} is {_ARTICLES[kind]}; remove it")
    cells = side_cells(card.side, selection.side, selection.option_names)
    excluded: list[Quarantine] = []
    notes: list[str] = []
    origin: str | None = None
    if kind == "image":
        root, scans = label_images(paths, card.study.source)
        long_names = scans_with_long_names(scans, _study(card, tuple(cells), selection), out)
        excluded = [Quarantine(key, STEP, str(error)) for key, error in long_names.items()]
        scans = {scan: path for scan, path in scans.items() if scan.key not in long_names}
        check_replaced(out, root, scans)
    else:
        root, origin = dicom, ANYWHERE
        scans, excluded, notes = convert_dicom(paths, dicom, card.study.source)
    rows, study = scan_rows(scans, cells), _study(card, tuple(cells), selection)
    lacking = scans_without_mask(study, root, rows)
    if cells and len(rows) > 1:
        values = ", ".join(f"{name} {cell_text(cell)}" for name, cell in cells.items())
        notes.append(f"all {len(rows)} scans get the same side information: {values}")
    return ConvertInputs(
        root,
        rows,
        sorted(excluded),
        [*notes, *side_notes(card.side, rows, "not given"), *_mask_notes(study, rows, lacking)],
        study,
        origin=origin,
    )


def _dataset_inputs(path: Path, kind: Kind, card: ModelCard, out: Path, selection: Selection) -> ConvertInputs:
    """Scans of a BIDS dataset or a table of samples."""
    table = path if kind == "table" else None
    root = path.parent if table else path
    place = path.name if table else "participants.tsv"
    if selection.side:
        side_cells(card.side, selection.side, selection.option_names)  # a misspelt option is reported as one
        raise ConfigError(
            f"--{next(iter(selection.side))} is for single images, but {path} is {_ARTICLES[kind]}; put the value into "
            f"its {place}"
        )
    columns = read_table(table).columns if table else known_columns(root)
    side = tuple(name for name in card.study.side if name in columns)
    study = _study(card, side, selection, table)
    spelt = {name.lower(): name for name in columns}
    notes = [
        f"side column '{name}' is unknown: {place} has '{spelt[name.lower()]}'; rename it there"
        for name in card.study.side
        if name not in columns and name.lower() in spelt
    ]
    known: dict[str, Declaration] = {
        column.name: column.level if isinstance(column, Categorical) else "Units"
        for column in card.side.columns
        if isinstance(column, Categorical) or column.mean is not None
    }
    everyone = list_scans(root, study, study.sources, out, known)
    # Masks of other people show that the folder is the right one, such as in a command for each subject.
    lacking = scans_without_mask(study, root, everyone.pairs)
    index = selection.select(everyone, path)
    if table:
        names = ["source", *(f"source_{name}" for name in study.extra_sources)]
        check_files_outside(out, [root / file for name in names for file in index.pairs[name]])
    sources = {Scan.parse(row["scan"]): Path(row["source"]) for row in index.pairs.to_dict("records")}
    origin = origin_of(root, study)
    check_replaced(out, root, sources, origin)
    lines = [f"{name}: {len(labels)} ({summarise_names(labels)})" for name, labels in index.missing.items() if labels]
    people = [line for line in lines if line.startswith("subjects")]
    notes += [*people, *(side_notes(card.side, index.pairs, f"no column in {place}") if len(index.pairs) else [])]
    notes += _mask_notes(study, index.pairs, lacking)
    name = UNNAMED if table else dataset_name(root)
    return ConvertInputs(root, index.pairs, index.quarantined, notes, study, name, origin)


def dataset_name(root: Path) -> str:
    """The name in a dataset's description, or `UNNAMED`."""
    with suppress(DataError):
        name = read_object(root / DESCRIPTION).get("Name")
        if isinstance(name, str) and name.strip():
            return printable(" ".join(name.split()))[:_MAX_NAME]
    return UNNAMED


def _study(card: ModelCard, side: tuple[str, ...], selection: Selection, table: Path | None = None) -> StudyConfig:
    values: dict[str, Any] = {
        "name": "convert",
        "samples": table,
        "source": card.study.source,
        "extra_sources": card.study.extra_sources,
        "target": card.study.target,
        "side": side,
        "where": selection.where,
        "runs": selection.runs,
        "masks": selection.masks,
    }
    return checked(StudyConfig, values, "convert")
