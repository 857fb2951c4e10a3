"""View of one converted scan on the grid of its own source, at full resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dualflow.config import Config
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.errors import DataError
from dualflow.imaging.result_figure import result_figure
from dualflow.imaging.volume import read_volume
from dualflow.layout import Scan
from dualflow.modalities import modality

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def native_view(config: Config, scan: str, source: str) -> tuple[Figure, tuple[int, ...]] | None:
    """Figure of source, real and expected image, difference and spread of a scan, and the shape of its grid.

    Args:
        config: configuration of the study.
        scan: key of a scan of a split that is converted.
        source: file of its source, relative to the dataset.

    Returns:
        None if the raw source or the conversion cannot be read: the report shows the scan on the model grid anyway.
    """
    layout, key = config.layout, Scan.parse(scan)
    source_row, row = modality(config.study.source), modality(config.study.target)
    preprocessed = PreprocessedScan.from_manifest(layout, key)
    try:
        raw = read_volume(config.bids / source, nan_as_zero=source_row.never_zero)
        mean, spread = (layout.synthetic(key, source_row, row, desc) for desc in ("synth", "synthstd"))
        std = read_volume(spread).array if spread.is_file() else None
        real, mask = (preprocessed.volume(name).array for name in ("target_native", "mask_native"))
        to_template = np.array(preprocessed.record()["source_to_template"])
        canvas = result_figure(
            source=raw.array, mean=read_volume(mean).array, std=std, affine=to_template @ raw.affine, unit=row.unit,
            window=row.window, title=scan, mask=mask > 0.5, real=real, source_name=source_row.suffix,
            target_name=row.tracer or row.suffix,
        )  # fmt: skip
    except DataError:
        return None
    return canvas.figure, raw.array.shape
