"""Corruptions of a preprocessed scan, to measure which a verdict on new scans notices.

Intensities are those after preprocessing: most of the brain lies in 0..1, and outside the mask is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from dualflow.arrays import Bools, Doubles, Singles
from dualflow.imaging.geometry import FWHM

Kind = Literal["harmless", "mild", "gross", "lesion", "undetectable"]


@dataclass(frozen=True)
class GridScan:
    """A preprocessed scan on the model grid.

    Attributes:
        source: normalised source `[D, H, W]`, 0 outside the mask.
        mask: brain mask of that size.
        spacing_mm: edge of a voxel.
        target: normalised target of that size; None if the scan has none.
        lesion: voxel at the centre of an implanted lesion; None without one.
    """

    source: Singles
    mask: Bools
    spacing_mm: float
    target: Singles | None = None
    lesion: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Corruption:
    """One row of CORRUPTIONS.

    Attributes:
        kind: `harmless` (must not be refused), `mild` (within what scanners differ by), `gross` (must be refused),
            `lesion` (must be shown by the lesion map) or `undetectable` (the image alone does not show it).
        function: (generator, scan) -> corrupted scan; the source may be non-zero outside the mask.
        needs_target: whether the function uses the target.
    """

    kind: Kind
    function: Callable[[np.random.Generator, GridScan], GridScan]
    needs_target: bool = False

    def __call__(self, rng: np.random.Generator, scan: GridScan) -> GridScan:
        """Return the corrupted scan, with source 0 outside the mask."""
        result = self.function(rng, scan)
        source = np.where(result.mask, result.source, 0).astype(np.float32)
        return replace(result, source=source, mask=result.mask.copy())


def corrupt(name: str, scan: GridScan, seed: int | tuple[int, ...]) -> GridScan | None:
    """Apply a row of CORRUPTIONS to a scan, reproducibly; None if it needs a target and the scan has none."""
    row = CORRUPTIONS[name]
    return None if row.needs_target and scan.target is None else row(np.random.default_rng(seed), scan)


def _intensity(change: Callable[[np.random.Generator, GridScan], NDArray[Any]]) -> Callable[..., GridScan]:
    """A corruption that changes the source and keeps the mask."""
    return lambda rng, scan: replace(scan, source=change(rng, scan))


def _transform(transform: Callable[..., Any], image: NDArray[Any]) -> Singles:
    """Apply a MONAI transform to one volume."""
    result = transform(torch.from_numpy(np.ascontiguousarray(image, np.float32))[None])
    return np.asarray(torch.as_tensor(result)[0].numpy(), np.float32)


def _both(transform: Callable[..., Any], scan: GridScan) -> GridScan:
    """Apply a MONAI transform to source and mask."""
    mask = _transform(transform, scan.mask) > 0.5
    return replace(scan, source=_transform(transform, scan.source), mask=mask)


def _field(rng: np.random.Generator, scan: GridScan, smooth_mm: float) -> Doubles:
    """Smooth random field of standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(scan.mask.shape), smooth_mm / scan.spacing_mm, mode="wrap")
    return np.asarray(field / field.std())


def _noise(rng: np.random.Generator, scan: GridScan, sd: float) -> NDArray[Any]:
    return scan.source + sd * rng.standard_normal(scan.mask.shape)


def _blur(_rng: np.random.Generator, scan: GridScan, fwhm_mm: float) -> NDArray[Any]:
    return np.asarray(ndimage.gaussian_filter(scan.source, fwhm_mm / FWHM / scan.spacing_mm))


def _gamma(_rng: np.random.Generator, scan: GridScan, gamma: float) -> NDArray[Any]:
    return np.asarray(np.clip(scan.source, 0, None) ** gamma)


def _bias(rng: np.random.Generator, scan: GridScan, log_sd: float) -> NDArray[Any]:
    return np.asarray(scan.source * np.exp(log_sd * _field(rng, scan, 32.0)))


def _remap(_rng: np.random.Generator, scan: GridScan, levels: tuple[float, ...]) -> NDArray[Any]:
    """Map quantiles of T1-weighted tissue (background, fluid, grey matter, white matter) to other levels."""
    anchors = np.quantile(scan.source[scan.mask], (0.0, 0.05, 0.35, 0.85))
    return np.asarray(np.interp(scan.source, anchors, levels))


def _target_as_source(_rng: np.random.Generator, scan: GridScan) -> NDArray[Any]:
    assert scan.target is not None
    return np.asarray(scan.target / np.percentile(scan.target[scan.mask], 99.5))


def _contrast_agent(rng: np.random.Generator, scan: GridScan) -> NDArray[Any]:
    """Bright vessels, and slightly brighter grey matter."""
    vessels = 1 / (1 + np.exp(-(_field(rng, scan, 6.0) - 1.3) / 0.15))
    return np.asarray(scan.source + 0.15 * vessels + 0.05 * ((scan.source > 0.3) & (scan.source < 0.75)))


def _flip(_rng: np.random.Generator, scan: GridScan, axis: int) -> GridScan:
    from monai.transforms import Flip

    return _both(Flip(axis), scan)


def _turn(_rng: np.random.Generator, scan: GridScan, quarters: int) -> GridScan:
    from monai.transforms import Compose, ResizeWithPadOrCrop, Rotate90

    return _both(Compose([Rotate90(quarters, (0, 1)), ResizeWithPadOrCrop(scan.mask.shape)]), scan)


def _misaligned(rng: np.random.Generator, scan: GridScan, shift_mm: float, angle_deg: float) -> GridScan:
    """Shift and turn in random directions."""
    from monai.transforms import Affine

    shift, turn = rng.standard_normal((2, 3))
    shift *= shift_mm / scan.spacing_mm / np.linalg.norm(shift)
    turn *= np.radians(angle_deg) / np.linalg.norm(turn)
    return _both(Affine(list(turn), None, list(shift), padding_mode="zeros", image_only=True), scan)


def _brain_slices(scan: GridScan) -> NDArray[np.intp]:
    """Axial slices that show brain."""
    return np.flatnonzero(scan.mask.any(axis=(0, 1)))


def _missing_slices(rng: np.random.Generator, scan: GridScan, share: float) -> NDArray[Any]:
    slices = _brain_slices(scan)
    source = scan.source.copy()
    source[:, :, rng.choice(slices, max(1, round(share * len(slices))), replace=False)] = 0
    return source


def _ghost(_rng: np.random.Generator, scan: GridScan, strength: float) -> NDArray[Any]:
    """A copy of the head, a quarter of the field of view further."""
    return scan.source + strength * np.roll(scan.source, scan.mask.shape[1] // 4, axis=1)


def _crop(_rng: np.random.Generator, scan: GridScan, share: float) -> GridScan:
    """The lowest part of the brain lies outside the field of view."""
    slices, mask = _brain_slices(scan), scan.mask.copy()
    mask[:, :, : slices[0] + round(share * len(slices))] = False
    return replace(scan, mask=mask)


def _thick_slices(_rng: np.random.Generator, scan: GridScan, thickness_mm: float) -> NDArray[Any]:
    """Axial slices averaged over a thickness, and interpolated back."""
    from torch.nn.functional import interpolate

    depth, height, width = scan.mask.shape
    image = torch.from_numpy(scan.source)[None, None]
    few = interpolate(image, (depth, height, round(width * scan.spacing_mm / thickness_mm)), mode="area")
    return interpolate(few, (depth, height, width), mode="trilinear")[0, 0].numpy()


def _skull(rng: np.random.Generator, scan: GridScan, thickness_mm: float) -> GridScan:
    """A mask that includes a bright shell around the brain."""
    mask = ndimage.binary_dilation(scan.mask, iterations=round(thickness_mm / scan.spacing_mm))
    shell = (0.9 + 0.2 * _field(rng, scan, 4.0)).astype(np.float32)
    return replace(scan, source=np.where(scan.mask, scan.source, shell), mask=mask)


def _ball(scan: GridScan, centre: NDArray[Any]) -> Doubles:
    """Distance of each voxel from a voxel in mm."""
    offset = np.indices(scan.mask.shape) - np.reshape(centre, (3, 1, 1, 1))
    return np.asarray(np.linalg.norm(offset, axis=0) * scan.spacing_mm)


def _ellipsoid(rng: np.random.Generator, scan: GridScan) -> GridScan:
    """Noise in an ellipsoid of the brain's size and place."""
    places = np.argwhere(scan.mask)
    centre, radii = places.mean(axis=0), np.sqrt(5) * places.std(axis=0)
    offset = (np.indices(scan.mask.shape).T - centre) / radii
    return replace(scan, source=rng.random(scan.mask.shape, np.float32), mask=(np.linalg.norm(offset, axis=-1) < 1).T)


def _deep_voxel(rng: np.random.Generator, scan: GridScan) -> NDArray[np.intp]:
    """A random voxel about 6 mm inside the brain or deeper."""
    deep = ndimage.gaussian_filter(scan.mask.astype(np.float32), 6 / scan.spacing_mm) > 0.85
    return np.asarray(rng.choice(np.argwhere(deep if deep.any() else scan.mask)))


def _hole(rng: np.random.Generator, scan: GridScan, diameter_mm: float) -> NDArray[Any]:
    return np.where(_ball(scan, _deep_voxel(rng, scan)) < diameter_mm / 2, 0, scan.source)


def _lesion(rng: np.random.Generator, scan: GridScan, diameter_mm: float, level: float, share: float) -> GridScan:
    """A ball with an edge of EDGE_MM in which `share` of the tissue has intensity `level`."""
    centre = _deep_voxel(rng, scan)
    inside = np.clip((diameter_mm / 2 - _ball(scan, centre)) / EDGE_MM + 0.5, 0, 1)
    source = (scan.source + share * inside * (level - scan.source)).astype(np.float32)
    i, j, k = (int(index) for index in centre)
    return replace(scan, source=source, lesion=(i, j, k))


DARK, BRIGHT = 0.15, 1.3
"""Intensity of fluid, and of enhancing tissue."""
LESION_MM, EDGE_MM = (10, 20, 40), 4.0
"""Diameters of lesions, and width of their edge."""

CORRUPTIONS: dict[str, Corruption] = {
    "clean": Corruption("harmless", lambda rng, scan: scan),
    "intensity scale": Corruption("harmless", _intensity(lambda rng, scan: 0.2 + 1.7 * scan.source)),
    "noise 8 %": Corruption("mild", _intensity(partial(_noise, sd=0.08))),
    "noise 20 %": Corruption("gross", _intensity(partial(_noise, sd=0.2))),
    "blur 8 mm": Corruption("gross", _intensity(partial(_blur, fwhm_mm=8.0))),
    "gamma 0.6": Corruption("mild", _intensity(partial(_gamma, gamma=0.6))),
    "gamma 1.6": Corruption("mild", _intensity(partial(_gamma, gamma=1.6))),
    "bias field, mild": Corruption("mild", _intensity(partial(_bias, log_sd=0.087))),
    "bias field, strong": Corruption("gross", _intensity(partial(_bias, log_sd=0.3))),
    "T2-like contrast": Corruption("gross", _intensity(lambda rng, scan: 1 - scan.source)),
    "FLAIR-like contrast": Corruption("gross", _intensity(partial(_remap, levels=(0.0, 0.1, 0.9, 0.65)))),
    "PET given as MR": Corruption("gross", _intensity(_target_as_source), needs_target=True),
    "contrast agent": Corruption("gross", _intensity(_contrast_agent)),
    "flip, left-right": Corruption("undetectable", partial(_flip, axis=0)),
    "flip, front-back": Corruption("gross", partial(_flip, axis=1)),
    "flip, up-down": Corruption("gross", partial(_flip, axis=2)),
    "turn 90 degrees": Corruption("gross", partial(_turn, quarters=1)),
    "turn 180 degrees": Corruption("gross", partial(_turn, quarters=2)),
    "shift 8 mm": Corruption("gross", partial(_misaligned, shift_mm=8.0, angle_deg=0.0)),
    "shift 15 mm, turn 10 degrees": Corruption("gross", partial(_misaligned, shift_mm=15.0, angle_deg=10.0)),
    "turn 10 degrees": Corruption("gross", partial(_misaligned, shift_mm=0.0, angle_deg=10.0)),
    "missing slices": Corruption("gross", _intensity(partial(_missing_slices, share=0.1))),
    "ghost": Corruption("gross", _intensity(partial(_ghost, strength=0.25))),
    "crop 20 %": Corruption("gross", partial(_crop, share=0.2)),
    "slices of 10 mm": Corruption("gross", _intensity(partial(_thick_slices, thickness_mm=10.0))),
    "skull left on": Corruption("gross", partial(_skull, thickness_mm=8.0)),
    "noise in an ellipsoid": Corruption("gross", _ellipsoid),
    "hole of 7 cm": Corruption("gross", _intensity(partial(_hole, diameter_mm=70.0))),
    **{
        f"{name} lesion, {diameter // 10} cm{note}": Corruption(
            "lesion", partial(_lesion, diameter_mm=diameter, level=level, share=share)
        )
        for share, note in ((0.95, ""), (0.5, ", faint"))
        for name, level in (("dark", DARK), ("bright", BRIGHT))
        for diameter in LESION_MM
    },
}
"""Corruptions by name. Faint lesions have half the contrast."""
