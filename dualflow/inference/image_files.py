"""Scans from image files that belong to no dataset: their labels come from the file names."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dualflow.config import StudyConfig
from dualflow.data.bids_files import EXTENSIONS, is_utf8
from dualflow.data.index import COLUMNS
from dualflow.data.quarantine import Quarantine
from dualflow.data.tracers import is_tracer
from dualflow.digests import digest_of, sha256
from dualflow.errors import DataError, PairingError
from dualflow.inference.conversion_record import ORIGIN, STEP, VERDICT
from dualflow.inference.verdict import Outcome
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest
from dualflow.modalities import MODALITIES, modality

ANYWHERE = ""
"""Origin of scans that may replace the results of any image: those from DICOM, which are made anew each time."""
_ALPHANUMERIC = re.compile(r"[^A-Za-z0-9]")


def scan_rows(scans: Mapping[Scan, Path], cells: Mapping[str, float | str | None]) -> pd.DataFrame:
    """Rows as of `Index.pairs` for scans with one file each, and the same side information for all.

    Args:
        scans: scan -> its image, relative to the root of the inputs.
        cells: side column -> value.
    """
    rows = [
        [scan.key, scan.subject, scan.session, path.as_posix(), "", "convert"]
        for scan, path in sorted(scans.items(), key=lambda entry: entry[0].key)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    return table.assign(**{name: pd.Series([cell] * len(rows), dtype=object) for name, cell in cells.items()})


def label_images(files: Sequence[Path], source: str) -> tuple[Path, dict[Scan, Path]]:
    """The folder that holds all image files, and the scan of each file with its path in that folder.

    Raises:
        DataError: the name of a file cannot be used, or it says that the image is not of modality `source`.
        PairingError: two files would have the same label.
    """
    scans: dict[Scan, Path] = {}
    for file in files:
        _check_name(file, source)
        scan = scan_of(file)
        if scan in scans:
            raise PairingError(
                f"{scans[scan]} and {file} would both be {scan.key}; rename one, or list them in a table of samples "
                "with a subject or session for each"
            )
        scans[scan] = file
    folders = [os.path.abspath(file.parent) for file in files]  # noqa: PTH100 - removes `..`, but follows no links
    root = Path(os.path.commonpath(folders))
    return root, {
        scan: (Path(folder) / file.name).relative_to(root)
        for (scan, file), folder in zip(scans.items(), folders, strict=True)
    }


def origin_of(root: Path, study: StudyConfig) -> str:
    """Digest of where scans are from, the table or the folder; names of folders may identify people."""
    return digest_of(str((study.samples or root).resolve()))


def scan_origin(origin: str, path: Path) -> str:
    """What the conversion of a scan records of where it is from: `origin_of` the scans, and a digest of its path."""
    return f"{origin}-{digest_of(path.as_posix())[:16]}"


def check_replaced(out: Path, root: Path, scans: Mapping[Scan, Path], origin: str | None = None) -> None:
    """Check that no image would replace the results of another one with the same label.

    Args:
        out: output folder.
        root: folder that the paths are relative to.
        scans: scan -> its image.
        origin: digest of where the scans are from. A scan may replace the results of the same file there, and those
            whose origin is not recorded. None if it may replace none, ANYWHERE if all.

    Raises:
        PairingError: `out` holds a finished scan with the label of an image, from another image.
    """
    if origin == ANYWHERE:
        return
    layout = Layout(out, ".")
    for scan, path in scans.items():
        manifest = read_manifest(layout.scan_manifest(scan), verify=False)
        if manifest is None or Quarantine.of_manifest(scan.key, manifest) is not None:
            continue
        converted = read_manifest(layout.manifest(f"{STEP}/{scan.key}"), verify=False)
        if _is_refused(converted):  # there are no results to replace
            continue
        if origin is not None and _origin(converted) in (None, origin, scan_origin(origin, path)):
            continue
        if (root / path).is_file() and manifest["inputs"].get("source") != sha256(root / path):
            raise PairingError(
                f"{out} holds {scan.key} of another image than {path}; choose another output folder, give the scan "
                f"another label, or remove {layout.scan_manifest(scan)} to replace the results"
            )


def _is_refused(converted: dict[str, Any] | None) -> bool:
    """Whether a scan was refused, from the manifest of its conversion; with `--force` it has volumes all the same."""
    if converted is None or converted["outputs"]:
        return False
    return bool(converted["facts"].get(VERDICT, {}).get("verdict") == Outcome.REFUSED)


def _origin(converted: dict[str, Any] | None) -> str | None:
    """Where the scan of an earlier conversion is from, from its manifest; None if that is not recorded."""
    origin = (converted or {}).get("facts", {}).get(ORIGIN)
    return None if origin is None else str(origin)


def scan_of(file: Path) -> Scan:
    """The scan of an image file: BIDS entities if its name has `sub-`, else letters and digits of the name.

    A name without any, such as one in Chinese, becomes `scan` and digits of its SHA-256.
    """
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    if subject := _label(stem, "sub"):
        return Scan(subject, _label(stem, "ses"))
    label = _ALPHANUMERIC.sub("", unicodedata.normalize("NFKD", stem))
    return Scan(label or f"scan{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}")


def _label(stem: str, entity: str) -> str | None:
    """The label of a BIDS entity in a file name without its extension."""
    match = re.search(rf"(?:^|_){entity}-([A-Za-z0-9]+)(?=_|$)", stem)
    return match and match[1]


def _check_name(file: Path, source: str) -> None:
    if not file.name.endswith(EXTENSIONS):
        raise DataError(f"{file}: expected a NIfTI image, .nii or .nii.gz; convert it, for DICOM with dcm2niix")
    if not is_utf8(file):
        raise DataError(f"{file}: its name is not UTF-8; rename the file")
    stem, row = file.name.split(".")[0], modality(source)
    if _label(stem, "sub") and "_ses-" in stem and _label(stem, "ses") is None:
        raise DataError(f"{file}: a session label has letters and digits only; rename the file")
    suffix, tracer = stem.rpartition("_")[2], _label(stem, "trc")
    others = {row.suffix for row in MODALITIES.values()} - {row.suffix}
    if row.tracer and tracer and not is_tracer(tracer, row):
        named = f"PET of {tracer}"
    elif file.name.startswith("sub-") and suffix in others:
        named = suffix
    else:
        return
    raise DataError(f"{file}: is named as {named}, but the model's source is {source}; name its {source} images")
