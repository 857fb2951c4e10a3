"""A conversion from its inputs to its outputs, as the command line and Python call it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dualflow.config import ConvertConfig
from dualflow.errors import printable
from dualflow.inference.batch import Compute, convert_study
from dualflow.inference.inputs import ConvertInputs, expand_inputs, resolve_inputs
from dualflow.inference.plan import plan_scans, plan_text
from dualflow.inference.selection import Selection
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card, load_model
from dualflow.revisions import REVISIONS
from dualflow.temporaries import scratch_folder

DICOM_IMAGES = "sourcedata"
"""Folder of the output dataset with the images that were converted from DICOM."""


def convert_inputs(
    inputs: Sequence[str | Path],
    model: Path,
    out: Path,
    config: ConvertConfig,
    selection: Selection | None = None,
    compute: Compute = Compute(),  # noqa: B008 - immutable
    *,
    force: bool = False,
) -> pd.DataFrame:
    """Convert all scans of the inputs; return their rows of conversion.tsv, the worst scans first.

    conversion.tsv also has those of earlier commands with the same `out`.

    Args:
        inputs: images, patterns of images, a BIDS dataset, a table of samples, or DICOM folders.
        model: folder of the trained model.
        out: folder of the BIDS derivative dataset to write.
        config: how samples are drawn.
        selection: what to convert of the inputs, and their side information.
        compute: where the work runs.
        force: convert refused scans too.

    Raises:
        ConfigError: an option does not fit the inputs or the model, or `out` overlaps an input.
        CheckpointError: there is no model, or a broken one.
        DataError: the inputs cannot be read, or hold no usable scan.
    """
    paths = expand_inputs(inputs)
    compute.check()
    card = load_model(model).card  # verifies the weights too
    scans = resolve_inputs(paths, card, out, model, out / DICOM_IMAGES, selection)
    _print_notes(scans, card)
    return convert_study(scans, model, out, config, compute, force=force)


def plan_conversion(
    inputs: Sequence[str | Path],
    model: Path,
    out: Path,
    config: ConvertConfig,
    selection: Selection | None = None,
    *,
    force: bool = False,
) -> str:
    """Describe what `convert_inputs` would do; nothing is written to `out`."""
    paths = expand_inputs(inputs)
    card = load_card(model)
    with scratch_folder() as scratch:
        scans = resolve_inputs(paths, card, out, model, scratch, selection)
        _print_notes(scans, card)
        return plan_text(plan_scans(scans, card, out, config, force=force))


def _print_notes(scans: ConvertInputs, card: ModelCard) -> None:
    notes = list(scans.notes)
    if card.preprocess_revision != (revision := REVISIONS["preprocess"]):
        builder = f"dualflow {card.dualflow}" + (f", commit {card.short_commit}" if card.commit else "")
        notes.append(
            f"revision {card.preprocess_revision or 'unknown'} of the preprocessing prepared the scans that the model "
            f"learnt from, revision {revision} prepares these; train it again, or convert with its own {builder}"
        )
    for note in notes:
        print(printable(note), file=sys.stderr)
