"""Opening raw images as preprocessing does, for tests of a single one."""

from __future__ import annotations

from pathlib import Path

from dualflow.imaging.raw_image import RawImage, check_scan, digest_image
from dualflow.imaging.sidecar import read_sidecar


def verify_image(path: Path, *, skip_nan: bool = False) -> RawImage:
    """Read an image's sidecar, digest its file and check it.

    Raises:
        DataError: as `read_sidecar`, `digest_image` and `check_scan`.
    """
    image = RawImage(path, read_sidecar(path), digest_image(path))
    check_scan(path, image.digest, skip_nan=skip_nan)
    return image
