"""The result of preprocessing one scan: images on the model grid, the mask, and the record of the processing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dualflow.arrays import Bools, Singles
from dualflow.imaging.geometry import Volume
from dualflow.imaging.registration import Alignment
from dualflow.imaging.stopwatch import Stopwatch


@dataclass(frozen=True)
class AlignedImage:
    """A target or further source, aligned with the source.

    Attributes:
        values: `[D, H, W]` on the model grid, normalised, background outside the brain.
        volume: on its own grid, raw units.
        alignment: from its world to the source's.
        record: its file and its intensities, JSON-able.
        detail: of a further source, `[D, H, W]` as `detail_on_grid` returns it; None for a target.
    """

    values: Singles
    volume: Volume
    alignment: Alignment
    record: dict[str, Any]
    detail: Singles | None = None


@dataclass(frozen=True)
class PreprocessedPair:
    """One scan, ready for the model.

    Attributes:
        source: `[D, H, W]` on the model grid, normalised, background outside the brain.
        detail: of the source, `[D, H, W]` as `detail_on_grid` returns it.
        target: the same for the target, or None.
        mask: brain `[D, H, W]` on the model grid.
        record: every transform, intensity and quality metric, JSON-able.
        source_volume: the source on its own grid, corrected for its bias field, raw units.
        native_mask: brain on the source's own grid.
        target_native: the target on the source's own grid, normalised, background outside the brain.
        target_volume: the target on its own grid, raw units.
        extra: the further sources, by modality.
        clock: seconds by step; not in the record, because equal scans have equal records.
    """

    source: Singles
    detail: Singles
    target: Singles | None
    mask: Bools
    record: dict[str, Any]
    source_volume: Volume
    native_mask: Bools
    target_native: Singles | None
    target_volume: Volume | None = None
    extra: Mapping[str, AlignedImage] = field(default_factory=dict)
    clock: Stopwatch = field(default_factory=Stopwatch, compare=False)
