"""Interactive views of one person as complete HTML pages of nilearn, which load nothing from elsewhere."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np

from dualflow.arrays import Bools, Floats
from dualflow.imaging.geometry import Affine
from dualflow.report.data_uri import script_digest

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

    from dualflow.report.subject_figure import Column

MAX_BYTES = 6 << 20
"""Largest size of all views together; larger ones are drawn on a coarser grid."""
_COARSER = 1.5


def interactive_views(images: Iterable[Column], background: Floats, mask: Bools, affine: Affine) -> dict[str, str]:
    """A page per image, in which a click moves the three planes.

    Args:
        images: images on the model grid, with colours and windows.
        background: source `[D, H, W]` below them.
        mask: brain, outside which the images are transparent.
        affine: of the model grid, in RAS+ millimetres.
    """
    shown, spacing = list(images), float(np.linalg.norm(affine[:3, 0]))
    # nilearn collects garbage several times per view, which takes seconds among all objects of the program.
    gc.freeze()
    try:
        while True:
            pages = {image.name: _page(image, background, mask, affine, spacing) for image in shown}
            if sum(map(len, pages.values())) <= MAX_BYTES or not shown:
                return pages
            spacing *= _COARSER
    finally:
        gc.unfreeze()


def script_sources(pages: Iterable[str]) -> list[str]:
    """Sources of a content security policy that allow the scripts of `pages` and no others."""
    parser = _Scripts()
    for page in pages:
        parser.feed(page)
    return [f"'sha256-{digest}'" for digest in dict.fromkeys(map(script_digest, parser.scripts))]


def _page(image: Column, background: Floats, mask: Bools, affine: Affine, spacing: float) -> str:
    from nilearn.plotting import view_img  # seconds to import

    assert image.volume is not None
    low, high = image.window
    # Values below the threshold are transparent: those outside the brain.
    inside = np.where(mask, np.clip(image.volume, low, high), 0.0)
    inside[mask & (inside == 0)] = 1e-4
    centre = affine @ [*(float(np.mean(index)) for index in np.nonzero(mask)), 1.0]
    with warnings.catch_warnings():
        # nilearn calls a function of matplotlib that is to be deprecated.
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        view: Any = view_img(
            _image(inside, affine, spacing),
            bg_img=_image(background, affine, spacing),
            cut_coords=[round(float(value)) for value in centre[:3]],
            threshold=1e-5,
            cmap=image.colours,
            symmetric_cmap=low < 0,
            vmin=low,
            vmax=high,
            black_bg=True,
            title=f"{image.name} ({image.unit})",
            width_view=600,
            resampling_interpolation="nearest",
        )
    return str(view.html)


def _image(volume: Floats, affine: Affine, spacing: float) -> Nifti1Image:
    """A volume as an image, on a coarser grid if `spacing` is larger than that of `affine`."""
    from nibabel.nifti1 import Nifti1Image
    from nilearn.image import resample_img

    image = Nifti1Image(np.asarray(volume, np.float32), affine)
    if spacing <= float(np.linalg.norm(affine[:3, 0])) * 1.001:
        return image
    return resample_img(image, np.diag([spacing] * 3), interpolation="nearest")


class _Scripts(HTMLParser):
    """Collects the inline scripts of pages."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self._inside = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data
