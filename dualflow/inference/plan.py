"""The plan of a conversion, for a dry run: what would be done with each scan, without writing anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dualflow.config import ConvertConfig
from dualflow.data.quarantine import Quarantine, without_folders
from dualflow.data.raw_scans import current_manifest
from dualflow.data.scan_files import ScanFiles, input_digests
from dualflow.data.tsv import cell_text
from dualflow.errors import DataError, printable
from dualflow.imaging.nifti_header import check_header
from dualflow.inference.conversion_record import STEP, conversion_inputs, is_converted, side_values
from dualflow.inference.inputs import ConvertInputs
from dualflow.layout import Layout, Scan
from dualflow.models.card import ModelCard


@dataclass(frozen=True)
class PlannedScan:
    """What a conversion would do with a scan.

    Attributes:
        scan: key of the scan.
        status: `new`, `done` if it is converted and unchanged, or `excluded`.
        details: its files and side information, or the reason of the exclusion.
    """

    scan: str
    status: Literal["new", "done", "excluded"]
    details: str

    def __str__(self) -> str:
        return printable(f"{self.status:<9}{self.scan}: {self.details}")


def plan_scans(
    inputs: ConvertInputs, card: ModelCard, out: Path, config: ConvertConfig, *, force: bool = False
) -> list[PlannedScan]:
    """Plan a conversion; with `force`, refused scans are to be converted too.

    Headers of new scans are checked. Finished scans are read as in a conversion, because their files may have changed.
    """
    planner = _Planner(inputs, card, Layout(out, "."), config, force)
    planned = [planner.plan(row) for row in inputs.rows.to_dict("records")]
    planned += [PlannedScan(row.scan, "excluded", row.reason) for row in inputs.quarantined]
    return sorted(planned, key=lambda scan: scan.scan)


def plan_text(planned: list[PlannedScan]) -> str:
    """A line per scan, and their counts."""
    counts = Counter(scan.status for scan in planned)
    totals = ", ".join(f"{counts[status]} {status}" for status in ("new", "done", "excluded"))
    return "\n".join([*map(str, planned), f"dry run: {totals}; nothing was written"])


@dataclass(frozen=True)
class _Planner:
    """What the plans of all scans share: the inputs, the model's card, the output folder and the options."""

    inputs: ConvertInputs
    card: ModelCard
    layout: Layout
    config: ConvertConfig
    force: bool

    def plan(self, row: Mapping[Any, Any]) -> PlannedScan:
        """Plan the scan of a row."""
        scan = Scan.parse(row["scan"])
        files = ScanFiles.of_row(self.inputs.root, row, self.inputs.study)
        try:
            for path in files.paths.values():
                check_header(path, 4, series=True)
            is_done = self._is_done(scan, row, files)
            if isinstance(is_done, Quarantine):
                return PlannedScan(scan.key, "excluded", is_done.reason)
        except DataError as error:
            return PlannedScan(scan.key, "excluded", files.without_folders(str(error)))
        side = [f"{column.name}={cell_text(row.get(column.name))}" for column in self.card.side.columns]
        paths = [without_folders(str(path), self.inputs.root) for name, path in files.paths.items() if name != "mask"]
        mask = ["your own mask"] if files.mask else []
        return PlannedScan(scan.key, "done" if is_done else "new", ", ".join([*paths, *mask, *side]))

    def _is_done(self, scan: Scan, row: Mapping[Any, Any], files: ScanFiles) -> bool | Quarantine:
        """Whether a scan is converted and unchanged, or the reason for which preprocessing excluded it before."""
        card, layout = self.card, self.layout
        if not layout.scan_manifest(scan).is_file():
            return False
        manifest = current_manifest(layout, scan, input_digests(files.open()), self.inputs.study, card.preprocess)
        if manifest is None:
            return False
        if (excluded := Quarantine.of_manifest(scan.key, manifest)) is not None:
            return excluded
        digests = conversion_inputs(card, layout, scan, side_values(card, row))
        return is_converted(layout.manifest(f"{STEP}/{scan.key}"), digests, self.config, force=self.force)
