"""Scans that several studies share: hard links to simulated and preprocessed files, with their manifests."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from dualflow.layout import Layout
from dualflow.manifest import manifest_outputs, read_manifest


def share_scans(source: Layout, destination: Layout, subjects: Collection[str] | None = None) -> None:
    """Link the finished scans of one study into another that simulates and preprocesses the same people.

    A scan that cannot be linked, such as on a file system without hard links, is left out: the other study makes it.
    Its own steps verify every linked file and replace those made with other options.

    Args:
        source: the study with finished scans.
        destination: the study that receives them.
        subjects: labels of the subjects to share; None shares all.
    """
    for manifest in _finished(source, subjects):
        content = read_manifest(manifest, verify=False)
        if content is None:
            continue
        files = [file for file, _ in manifest_outputs(manifest, content).values()]
        # The manifest comes last, because it says that the files are complete.
        try:
            for file in [*files, manifest]:
                _link(file, destination.root / file.relative_to(source.root))
        except (OSError, ValueError):  # ValueError: a file outside the study, which is no result of it
            continue


def _finished(layout: Layout, subjects: Collection[str] | None) -> Iterator[Path]:
    """Manifests of simulated subjects and of preprocessed scans."""
    for step in ("cohort/sub-*", "scans/sub-*"):
        for manifest in sorted(layout.root.glob(f"manifests/{step}.json")):
            if subjects is None or manifest.stem.removeprefix("sub-").split("_")[0] in subjects:
                yield manifest


def _link(file: Path, link: Path) -> None:
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, link)
