"""Bundles: a trained model as one portable folder, with the hash of every file in `bundle.json`.

A bundle holds the files of MODEL_FILES that the model has, and `README.md`. It needs no file of the study, and names
no person and no path. Hidden files, such as those of version control, are ignored.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dualflow import __version__
from dualflow.commit import commit_json, commit_text, committing, committing_folder
from dualflow.digests import sha256
from dualflow.errors import CheckpointError, CommitError
from dualflow.models.card import ModelCard
from dualflow.models.model_files import CARD, MIB, MODEL_FILES, WEIGHTS, check_size, read_limited

BUNDLE, README = "bundle.json", "README.md"
MARK = "\nlibrary_name: dualflow\n"
"""Line in the README of every bundle."""
REMEDY = "copy or export the bundle again"


class FileRecord(BaseModel):
    """Size and hash of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bytes: int = Field(ge=0)
    """Size in bytes."""
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the content."""

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """The record of a file."""
        return cls(bytes=path.stat().st_size, sha256=sha256(path))


class BundleRecord(BaseModel):
    """Content of `bundle.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1] = 1
    """Version of this layout."""
    dualflow: str = __version__
    """Version of dualflow that wrote the bundle."""
    files: dict[str, FileRecord]
    """Every other file of the bundle, by name."""


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle: it has a `bundle.json`, or the README of a bundle that has lost it."""
    if (folder / BUNDLE).is_file():
        return True
    try:
        return MARK in read_limited(folder / README, MIB)
    except (OSError, UnicodeDecodeError, CheckpointError):
        return False


def verify_bundle(folder: Path) -> BundleRecord:
    """Check that a bundle holds exactly the files of its record, unchanged.

    Raises:
        CheckpointError: a file is missing, changed, too large or not in the record, or the record is none.
    """
    record = _read_record(folder)
    for entry in sorted(folder.iterdir()):
        if entry.name not in record.files and entry.name != BUNDLE and not entry.name.startswith("."):
            raise CheckpointError(f"{entry}: is not listed in {BUNDLE}; remove it, or {REMEDY}")
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing, but listed in {BUNDLE}; {REMEDY}")
        check_size(path, _limit(name))
        if path.stat().st_size != expected.bytes or sha256(path) != expected.sha256:
            raise CheckpointError(f"{path}: does not match its hash in {BUNDLE}; {REMEDY}")
    return record


def write_bundle(
    model: Path, folder: Path, card: ModelCard, readme: Callable[[Mapping[str, FileRecord]], str]
) -> BundleRecord:
    """Write the bundle of a model folder; an earlier bundle is replaced.

    Args:
        model: folder of the trained model.
        folder: folder to write.
        card: card of the model.
        readme: returns the text of `README.md`, given the records of the other files.

    Raises:
        CommitError: `folder` holds something else than a bundle, or cannot be written.
    """
    require_bundle_or_nothing(folder)
    with committing_folder(folder, keep_hidden=True) as temp:
        commit_text(temp / CARD, public_card(card).model_dump_json(indent=2) + "\n")
        for name in MODEL_FILES:
            if name != CARD and (model / name).is_file():
                _copy(model / name, temp / name)
        files = {name: FileRecord.of(temp / name) for name in MODEL_FILES if (temp / name).is_file()}
        if WEIGHTS not in files or files[WEIGHTS].sha256 != card.weights_sha256:
            raise CheckpointError(f"{model / WEIGHTS}: does not match the hash in {CARD}; train the model again")
        commit_text(temp / README, readme(files))
        record = BundleRecord(files={**files, README: FileRecord.of(temp / README)})
        commit_json(temp / BUNDLE, record.model_dump(mode="json"))
    return record


def copy_bundle(bundle: Path, folder: Path) -> BundleRecord:
    """Copy a bundle, unchanged; an earlier bundle is replaced.

    Raises:
        CheckpointError: the bundle does not verify.
        CommitError: `folder` holds something else than a bundle, or cannot be written.
    """
    record = verify_bundle(bundle)
    require_bundle_or_nothing(folder)
    with committing_folder(folder, keep_hidden=True) as temp:
        for name in (*record.files, BUNDLE):
            _copy(bundle / name, temp / name)
        verify_bundle(temp)
    return record


def public_card(card: ModelCard) -> ModelCard:
    """The card without paths: the study's own mask of a reference region is named by its file alone.

    Conversion does not read that mask; the names of columns, levels and scanners are needed and stay.
    """
    return card.model_copy(update={"preprocess": card.preprocess.without_folders()})


def require_bundle_or_nothing(folder: Path) -> None:
    """Refuse to replace anything but a bundle or an empty folder. Hidden files of a bundle stay.

    Raises:
        CommitError: the folder, or a file of that name, holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if is_bundle(folder):
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
        if others := sorted(names - {*MODEL_FILES, README, BUNDLE}):
            raise CommitError(
                f"{folder}: also holds {', '.join(others[:3])}, which a new bundle would remove; move it, or name "
                "another folder"
            )
        return
    raise CommitError(f"{folder}: exists and is not a bundle (it has no {BUNDLE}); name another folder")


def _read_record(folder: Path) -> BundleRecord:
    path = folder / BUNDLE
    try:
        record = BundleRecord.model_validate_json(read_limited(path, MIB))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read ({reason}); {REMEDY}") from error
    except ValidationError as error:
        entry = error.errors()[0]
        field = "".join(f"{part}: " for part in entry["loc"])
        raise CheckpointError(
            f"{path}: is not the record of a bundle of this version ({field}{entry['msg']}); {REMEDY}"
        ) from None
    if unknown := sorted(record.files.keys() - {*MODEL_FILES, README}):
        raise CheckpointError(f"{path}: lists '{unknown[0]}', which is no file of a model; {REMEDY}")
    required = [README, *(name for name, row in MODEL_FILES.items() if row.required)]
    if missing := [name for name in required if name not in record.files]:
        raise CheckpointError(f"{path}: does not list {missing[0]}; {REMEDY}")
    return record


def _limit(name: str) -> int:
    return MODEL_FILES[name].limit if name in MODEL_FILES else MIB


def _copy(source: Path, target: Path) -> None:
    with committing(target) as temp:
        shutil.copyfile(source, temp)
