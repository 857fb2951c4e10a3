"""Files of one scan's conversion on disk, also those that no manifest lists."""

from __future__ import annotations

from pathlib import Path

from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.modalities import Modality


def remove_files(layout: Layout, scan: Scan, source: Modality, target: Modality) -> None:
    """Remove the files of a scan's conversions, also those of one that did not finish."""
    for file in conversion_files(layout, scan, source, target):
        file.unlink(missing_ok=True)


def conversion_files(layout: Layout, scan: Scan, source: Modality, target: Modality) -> list[Path]:
    """The files that conversions of a scan to `target` have written, whatever their settings, with their sidecars."""
    deviation = layout.deviation(scan, source, source)
    of_any_source = deviation.with_name(deviation.name.replace(f"_{source.suffix}.nii", "_*.nii"))
    images = [layout.synthetic(scan, source, target, "synth*"), of_any_source]
    products = [*images, layout.region_table(scan, source, target)]
    patterns = [*products, *map(sidecar_path, products), layout.figure(scan, "synth")]
    return sorted(file for pattern in patterns for file in pattern.parent.glob(pattern.name))
