"""Convert scans with a trained model: volumes and tables, and the page to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from dualflow.config import ConvertConfig
from dualflow.data.side_encoder import Continuous
from dualflow.errors import DataError
from dualflow.inference.batch import Compute
from dualflow.inference.conversion import convert_inputs
from dualflow.inference.conversion_table import DIGITS
from dualflow.inference.folder_tables import folder_table, scans_of_other_models, tables_lock
from dualflow.inference.selection import Selection
from dualflow.layout import Layout, Scan
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card
from dualflow.report.conversion_page import write_conversion_page


def convert(
    inputs: Sequence[str | Path],
    model: Path,
    out: Path,
    config: ConvertConfig,
    selection: Selection | None = None,
    compute: Compute = Compute(),  # noqa: B008 - immutable
    *,
    force: bool = False,
) -> pd.DataFrame:
    """Convert all scans of the inputs, and write conversion.html of `out`; arguments and result as `convert_inputs`."""
    layout = Layout(out, ".")
    try:
        table = convert_inputs(inputs, model, out, config, selection, compute, force=force)
    except DataError:
        if layout.conversion_page.is_file():  # scans of earlier commands may be excluded now
            write_page(layout, load_card(model))
        raise
    write_page(layout, load_card(model))
    return table


def write_page(layout: Layout, card: ModelCard) -> None:
    """Write the page of all scans in an output folder; `card` is that of the last model."""
    with tables_lock(layout):
        _write_page(layout, folder_table(layout), card)


def _write_page(layout: Layout, table: pd.DataFrame, card: ModelCard) -> None:
    others = scans_of_other_models(layout, card)
    further = f", another one for {others} scan{'' if others == 1 else 's'}" if others else ""
    write_conversion_page(
        layout.conversion_page,
        table,
        title=f"Synthetic {card.study.target} from {card.study.source}",
        model=f"{card.label} of study {card.study.name} ({card.weights_sha256[:DIGITS]}){further}",
        figures={key: path for key in table["scan"] if (path := _picture(layout, str(key))) is not None},
        date=datetime.now(UTC).date().isoformat(),
        ranges={
            column.name: (column.low, column.high)
            for column in card.side.columns
            if isinstance(column, Continuous) and column.low is not None and column.high is not None
        },
    )


def _picture(layout: Layout, key: str) -> Path | None:
    """The picture of a scan's result, or of its preprocessing if it was not converted."""
    try:
        paths = [layout.figure(Scan.parse(key), name) for name in ("synth", "qc")]
    except DataError:  # the label of an excluded scan
        return None
    return next((path for path in paths if path.is_file()), None)
