"""Conversion of one preprocessed scan of many: an error fails that scan alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from dualflow.config import StudyConfig
from dualflow.data.dataset import load_pairs
from dualflow.data.quarantine import Quarantine, without_folders
from dualflow.errors import CommitError, DualflowError
from dualflow.inference.conversion_record import STEP, side_values
from dualflow.inference.convert import Converter
from dualflow.layout import Scan

SHORTAGES = (MemoryError, OSError, torch.OutOfMemoryError)
"""Errors of the machine, such as a disk that is away: no defect of the scan."""


def convert_scan(
    converter: Converter,
    row: pd.DataFrame,
    study: StudyConfig,
    raw: Path,
    *,
    origin: str = "",
    folders: Iterable[Path] = (),
) -> Path | Quarantine:
    """Convert a preprocessed scan unless that is done and unchanged; return its manifest, or why it failed.

    A scan that fails loses the files of an earlier conversion, unless the machine lacks memory or a file and another
    attempt may succeed. Its target is not read.

    Args:
        converter: the model and its settings.
        row: the scan's row of the index, as a table.
        study: modalities of the study.
        raw: its raw source, for the picture.
        origin: digest of where it is from, to record; '' for none.
        folders: folders that the reason does not name.

    Raises:
        CommitError: an output cannot be written.
    """
    [values], card = row.to_dict("records"), converter.predictor.card
    scan = Scan.parse(values["scan"])
    try:
        [item] = load_pairs(converter.layout, row.assign(target=""), study, card.side).items
        return converter.convert_if_needed(item, side_values(card, values), raw, origin)
    except CommitError:  # such as a full disk, which is no defect of the scan
        raise
    except Exception as error:  # a defective scan must not stop the others
        if not isinstance(error, SHORTAGES) and not isinstance(error.__cause__, SHORTAGES):
            converter.remove(scan)
        reason = str(error) if isinstance(error, DualflowError) else f"{type(error).__name__}: {error}"
        return Quarantine(scan.key, STEP, without_folders(reason, *folders))
