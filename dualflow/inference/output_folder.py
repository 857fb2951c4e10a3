"""Checks of the output folder of a conversion, before anything is written to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualflow.data.derivative_dataset import dataset_title
from dualflow.errors import ConfigError, DataError
from dualflow.imaging.sidecar import read_object
from dualflow.inference.conversion_record import STEP
from dualflow.layout import Layout
from dualflow.manifest import read_manifest
from dualflow.models.model_files import CARD

DESCRIPTION = "dataset_description.json"
UNNAMED = "converted scans"
"""Name of inputs that are no BIDS dataset with a name of its own; names of folders may identify people."""
WRITTEN = ("README", ".bidsignore", "conversion.html")
"""Files of every conversion beside its description; tables are also written if no scan is usable."""


def check_output(out: Path, inputs: Sequence[Path], model: Path) -> None:
    """Check that a conversion to `out` cannot overwrite an input or another dataset.

    `out` may be new, or hold an earlier conversion. It may lie in `derivatives/` of a BIDS dataset, but nowhere else
    inside an input, and no input may lie inside it.

    Args:
        out: the output folder, which need not exist.
        inputs: the files and folders to convert.
        model: folder of the model.

    Raises:
        ConfigError: `out` overlaps an input, the model or another dataset.
    """
    folder = out.resolve()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {out} is a file, expected a folder; choose another one")
    for path in inputs:
        _check_apart(out, folder, path, path.resolve())
    if folder.is_relative_to(model.resolve()):
        raise ConfigError(f"output {out} lies inside the folder of the model; choose another folder")
    _check_datasets(out, folder)


def check_target(out: Path, target: str) -> None:
    """Check that a conversion to `target` replaces none to another target: a folder holds one result of each scan.

    The manifest of a preprocessed scan has the target in its configuration.

    Raises:
        ConfigError: `out` holds conversions to another target.
    """
    layout = Layout(out, ".")
    for key in converted_scans(layout):
        record = read_manifest(layout.manifest(f"scans/{key}"), verify=False) or {}
        config = record.get("config")
        earlier = config.get("target") if isinstance(config, dict) else None
        if earlier not in (None, target):
            raise ConfigError(
                f"output {out} holds conversions to {earlier}, but this model makes {target}; choose another folder "
                "with --out"
            )


def shared_name(out: Path, name: str) -> str:
    """Return the name for the description of `out`: that of the dataset, unless earlier commands converted another."""
    file = out / DESCRIPTION
    earlier = read_object(file).get("Name") if file.is_file() else None
    return name if earlier in (None, dataset_title(name)) else UNNAMED


def converted_scans(layout: Layout) -> list[str]:
    """Keys of the scans with the manifest of a conversion, those of refused scans included, sorted."""
    return sorted(path.stem for path in layout.manifest(f"{STEP}/any").parent.glob("sub-*.json"))


def check_files_outside(out: Path, files: Sequence[Path]) -> None:
    """Check that no file of a dataset lies inside `out`; its table may name any.

    Raises:
        ConfigError: a file does.
    """
    folder = out.resolve()
    for file in files:
        if folder in file.resolve().parents:
            raise ConfigError(f"input {file} lies inside the output {out}; choose an output folder without inputs")


def _check_apart(out: Path, folder: Path, path: Path, resolved: Path) -> None:
    """Check that an input and the output do not lie inside each other."""
    if folder == resolved:
        raise ConfigError(f"output {out} is the input itself; choose a folder outside of it")
    if folder in resolved.parents:
        raise ConfigError(f"input {path} lies inside the output {out}; choose an output folder without inputs")
    if resolved in folder.parents and not (any(resolved.glob("sub-*")) and _in_derivatives(folder, resolved)):
        raise ConfigError(
            f"output {out} lies inside the input {path}; choose a folder outside of it, or one in its derivatives/ if "
            f"it is a BIDS dataset, such as {path / 'derivatives' / 'dualflow'}"
        )


def _check_datasets(out: Path, folder: Path) -> None:
    """Check that the output lies in no dataset and no study that another program, or another command, wrote."""
    for parent in (folder, *folder.parents):
        if not (parent / DESCRIPTION).is_file() or _is_conversion(parent):
            continue
        if parent == folder:
            raise ConfigError(
                f"output {out} holds a {DESCRIPTION} that dualflow's conversion did not write; choose another folder"
            )
        if not _in_derivatives(folder, parent):
            raise ConfigError(
                f"output {out} lies inside the dataset {parent}; choose a folder outside of it, or one in its "
                f"derivatives/, such as {parent / 'derivatives' / 'dualflow'}"
            )
    if any(folder.glob("sub-*")) and not (folder / DESCRIPTION).is_file():
        raise ConfigError(f"output {out} holds sub-* of another dataset; choose another folder")
    if not (folder / DESCRIPTION).is_file() and (others := _in_the_way(folder)):
        raise ConfigError(
            f"output {out} holds no conversion, but {others[0].name}, which a conversion would write over or beside; "
            "choose another folder"
        )
    studies = [Layout(folder), *(Layout(parent) for parent in folder.parents if Layout(parent).derivatives == folder)]
    if any(study.pairs.is_file() for study in studies):
        raise ConfigError(
            f"output {out} holds the results of a study, expected a folder of conversions; choose another"
        )


def _in_the_way(folder: Path) -> list[Path]:
    """Files of a folder that a conversion writes, and datasets and models in it."""
    files = [folder / name for name in WRITTEN]
    depths, markers = ("*", "*/*"), (DESCRIPTION, CARD)
    inside = {path.parent for depth in depths for name in markers for path in folder.glob(f"{depth}/{name}")}
    return [path for path in files if path.exists()] + sorted(inside)


def _in_derivatives(folder: Path, dataset: Path) -> bool:
    """Whether `folder` is a dataset in `derivatives/` of `dataset`."""
    return (dataset / "derivatives") in folder.parents


def _is_conversion(folder: Path) -> bool:
    """Whether a folder is a derivative dataset of dualflow."""
    try:
        description = read_object(folder / DESCRIPTION)
    except DataError:
        return False
    generators = description.get("GeneratedBy")
    names = (
        [entry.get("Name") for entry in generators if isinstance(entry, dict)] if isinstance(generators, list) else []
    )
    return description.get("DatasetType") == "derivative" and "dualflow" in names
