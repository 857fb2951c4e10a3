"""A PET file as one image: the motion-corrected mean of its frames in a time window, at a stated resolution.

load -> (align frames with each other) -> mean, weighted by each frame's seconds in the window -> (smooth)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dualflow.arrays import Bools, Singles
from dualflow.config import PreprocessConfig
from dualflow.errors import DataError, IntensityError
from dualflow.imaging.frame_times import FrameTimes, Window, frame_times
from dualflow.imaging.geometry import Volume, resample, smooth
from dualflow.imaging.motion import Motion, find_motion, working_copy
from dualflow.imaging.raw_image import RawImage
from dualflow.imaging.series import Series, open_series
from dualflow.imaging.units import UNKNOWN, parse_unit, unit_warnings
from dualflow.imaging.volume import read_volume
from dualflow.modalities import Modality

Record = dict[str, Any]

# Motion between frames beyond the scanner's resolution; the head probably moved within frames too.
LARGE_MM = 5.0
# Smallest share of the window that frames cover, and longest excess of a static image, without a note.
MIN_COVERED = 0.99
MAX_EXCESS_S = 1.0


def read_scan(image: RawImage, row: Modality, config: PreprocessConfig) -> tuple[Volume, Record]:
    """Load one scan of any modality, and its record: of a PET under the key `pet`, of others empty.

    NaN is read as 0 in images whose 0 means outside the field of view, as programs such as SPM write it there; the
    record of such an image has `nan_as_zero`.

    Raises:
        DataError: as `read_volume` and `read_pet`.
    """
    nan = {"nan_as_zero": True} if row.never_zero and math.isnan(image.digest.minimum) else {}
    if row.datatype != "pet":
        return read_volume(image.path, verified=True, nan_as_zero=row.never_zero), nan
    volume, record = read_pet(image.path, image.sidecar, config)
    return volume, {"pet": record | nan}


def read_pet(path: Path, sidecar: Mapping[str, Any], config: PreprocessConfig) -> tuple[Volume, Record]:
    """Load a static or dynamic PET file, already verified, as one image on its own grid.

    Args:
        path: the file.
        sidecar: its BIDS metadata.
        config: time window, motion correction and common resolution.

    Returns:
        The image, and the record of how it was made.

    Raises:
        HeaderError: the header is invalid, or the file ends too early.
        GeometryError: its affine is invalid or ambiguous.
        IntensityError: its voxels are infinite, or those that are not NaN are all the same.
        DataError: the frame times are missing or contradictory, no frame lies in the window, or the scanner's
            resolution is unknown or coarser than the requested one.
    """
    series = open_series(path)
    # The sidecar is checked before any voxel is read.
    blur = _extra_fwhm(sidecar, config, path)
    volume, record = (_static if series.count == 1 else _dynamic)(series, sidecar, config)
    stated_unit = str(sidecar.get("Units", ""))
    unit = parse_unit(stated_unit)
    record["unit"] = unit.name if unit else UNKNOWN
    record["notes"] += unit_warnings(unit, stated_unit, volume.array)
    if blur is None:
        return volume, record
    smoothed = smooth(volume, blur["added_fwhm_mm"])
    # What is outside the field of view stays there.
    in_view = np.where(volume.array == 0, np.float32(0), smoothed.array)
    return replace(smoothed, array=in_view), record | {"resolution": blur}


def _static(series: Series, sidecar: Mapping[str, Any], config: PreprocessConfig) -> tuple[Volume, Record]:
    """Read a single frame, or an image that was averaged elsewhere, which must overlap the window."""
    window, record, notes = config.pet_window_s, Record(), list[str]()
    try:
        times = frame_times(sidecar, str(series.path))
        if window and times.origin != "injection":
            raise DataError("InjectionStart is missing")
    except DataError as error:
        if window:
            notes = [f"not compared with the window: {str(error).removeprefix(f'{series.path}: ')}"]
    else:
        record, (first, last) = _overlap(times, window, series.path)[1], times.span
        if window and (first < window[0] - MAX_EXCESS_S or last > window[1] + MAX_EXCESS_S):
            notes = [f"is one image of {first:g} to {last:g} s, expected {window[0]:g} to {window[1]:g} s"]
    volume = read_volume(series.path, verified=True, nan_as_zero=True)
    return volume, record | {"frames": 1, "notes": [*record.get("notes", []), *notes]}


def _dynamic(series: Series, sidecar: Mapping[str, Any], config: PreprocessConfig) -> tuple[Volume, Record]:
    """The mean of the frames, each weighted by its seconds in the window."""
    times, window = frame_times(sidecar, str(series.path), series.count), config.pet_window_s
    if window and times.origin != "injection":
        raise DataError(
            f"{series.path}: InjectionStart is missing, expected it beside a window of {window[0]:g} to {window[1]:g} "
            "s after injection; add it to the sidecar or leave preprocess.pet_window_s out"
        )
    seconds, record = _overlap(times, window, series.path)
    record["frames"] = series.count
    if sidecar.get("ImageDecayCorrected") is False:
        record["notes"].append("its frames are not corrected for decay, so later ones have less weight")
    motions: dict[int, Motion] = {}
    padded: Bools = np.zeros(series.shape, dtype=bool)
    if config.pet_motion and len(seconds) > 1:
        copies, padded = {}, np.ones(series.shape, dtype=bool)
        for index, frame in series.frames(seconds, skip_nan=True):
            padded &= frame.array == 0  # a single short frame may have zeros in view
            copies[index] = working_copy(_without_nan(frame))
        reference, motions = find_motion(copies, {index: float(times.duration[index]) for index in seconds})
        record["motion"] = _motion_record(reference, motions)
        record["notes"] += _motion_notes(motions)
    return _average(series, seconds, motions, padded), record


def _overlap(times: FrameTimes, window: Window | None, path: Path) -> tuple[dict[int, float], Record]:
    """Seconds in the window by frame, without the frames outside it; and the record of the times."""
    first, last = times.span
    inside = times.overlap(window)
    seconds = {int(index): float(inside[index]) for index in np.flatnonzero(inside)}
    record: Record = {
        "times_after": times.origin,
        "acquired_s": [first, last],
        "window_s": list(window) if window else None,
        "seconds_by_frame": {str(index): round(overlap, 3) for index, overlap in seconds.items()},
        "notes": [],
    }
    if window is None:
        return seconds, record
    if not seconds:
        raise DataError(
            f"{path}: was acquired {first:g} to {last:g} s after injection, expected part of it in the window of "
            f"{window[0]:g} to {window[1]:g} s; check the sidecar's times and preprocess.pet_window_s"
        )
    covered = sum(seconds.values()) / (window[1] - window[0])
    if covered < MIN_COVERED:
        record["notes"].append(f"its frames cover {covered:.0%} of the window")
    return seconds, record | {"window_covered": round(covered, 4)}


def _average(series: Series, seconds: Mapping[int, float], motions: Mapping[int, Motion], padded: Bools) -> Volume:
    """Weighted mean, in each voxel over the frames that cover it; a moved frame is interpolated once.

    Args:
        series: the frames.
        seconds: weight of each frame.
        motions: motion of each frame, if it is known.
        padded: voxels that hold 0 in all frames, which are outside the field of view.
    """
    shape = series.shape
    total, weight = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    for index, whole in series.frames(seconds, skip_nan=True):
        motion = motions.get(index)
        frame = replace(whole, array=np.where(padded, np.float32(np.nan), whole.array))
        array: Singles = frame.array
        if motion is not None and not motion.still:
            array = resample(_without_nan(frame), *frame.grid, motion.to_frame, order=3, background=np.nan)
            if (hidden := np.isnan(frame.array)).any():
                moved = resample(replace(frame, array=hidden.astype(np.float32)), *frame.grid, motion.to_frame)
                array[moved > 0] = np.nan
        in_view = np.isfinite(array)
        np.add(total, seconds[index] * array, out=total, where=in_view)
        np.add(weight, seconds[index], out=weight, where=in_view)
    mean = np.divide(total, weight, out=np.zeros(shape), where=weight > 0).astype(np.float32)
    low, high = float(mean.min()), float(mean.max())
    if low == high:
        raise IntensityError(f"{series.path}: every voxel of its mean is {low:g}, expected an image; export it again")
    return Volume(mean, series.affine, series.path)


def _without_nan(frame: Volume) -> Volume:
    """A frame with 0 in place of NaN."""
    return replace(frame, array=np.where(np.isnan(frame.array), np.float32(0), frame.array))


def _motion_record(reference: int, motions: Mapping[int, Motion]) -> Record:
    """Motion of each frame, by its index in the file."""
    return {
        "reference_frame": reference,
        "frames": {
            str(index): {
                "mean_mm": round(motion.mean_mm, 3),
                "max_mm": round(motion.max_mm, 3),
                "corrected": not motion.still,
                **({"placed_by_frame": motion.placed_by, "because": motion.note} if motion.note else {}),
            }
            for index, motion in motions.items()
        },
    }


def _motion_notes(motions: Mapping[int, Motion]) -> list[str]:
    """Notes for the reviewer: large motion, and frames that could not be registered."""
    furthest = max(motion.mean_mm for motion in motions.values())
    failed = [motion for motion in motions.values() if motion.note]
    notes = [f"its head moves by up to {furthest:.1f} mm between frames"] if furthest > LARGE_MM else []
    if failed:
        notes.append(f"{len(failed)} of {len(motions)} frames cannot be registered and are placed as the nearest one")
    return notes


def _extra_fwhm(sidecar: Mapping[str, Any], config: PreprocessConfig, path: Path) -> Record | None:
    """The Gaussian that brings a scanner's resolution to the common one: variances add."""
    target = config.pet_resolution_mm
    if target is None:
        return None
    model = str(sidecar.get("ManufacturersModelName", ""))
    resolutions = {name.strip().lower(): value for name, value in config.scanner_resolution_mm.items()}
    fwhm = resolutions.get(model.strip().lower())
    if fwhm is None:
        raise DataError(
            f"{path}: the resolution of scanner '{model[:60]}' is not known, expected one of "
            f"{sorted(config.scanner_resolution_mm)}; add it to preprocess.scanner_resolution_mm"
        )
    if fwhm > target:
        raise DataError(
            f"{path}: scanner '{model}' resolves {fwhm:g} mm, expected at most {target:g} mm, as "
            "preprocess.pet_resolution_mm; raise the common resolution"
        )
    return {
        "scanner": model,
        "own_fwhm_mm": fwhm,
        "fwhm_mm": target,
        "added_fwhm_mm": round(float((target**2 - fwhm**2) ** 0.5), 4),
    }
