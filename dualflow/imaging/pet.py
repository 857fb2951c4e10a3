"""A PET file as one image: the mean of its frames in a window, free of motion, in a known unit, at a stated resolution.

read -> (frames aligned with each other) -> mean weighted by the seconds of each frame in the window -> (smoothed)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from dualflow.config import PreprocessConfig
from dualflow.errors import DataError, IntensityError
from dualflow.imaging.frame_times import FrameTimes, Window, frame_times
from dualflow.imaging.geometry import FWHM, FloatArray, Volume, resample, spacing_of
from dualflow.imaging.motion import Motion, find_motion, working_copy
from dualflow.imaging.series import Series, open_series
from dualflow.imaging.sidecar import read_sidecar
from dualflow.imaging.units import UNKNOWN, oddities, recognise
from dualflow.imaging.volume import read_volume
from dualflow.modalities import Modality

Record = dict[str, Any]

# Frames that lie further apart than a scanner resolves: the head also moved within them.
LARGE_MM = 5.0
# What frames cover of the window, and a still image goes beyond it, without a word.
COVERED = 0.99
BEYOND_S = 1.0


def read_scan(path: Path, row: Modality, config: PreprocessConfig) -> tuple[Volume, Record]:
    """Read one scan of any modality; a PET's record is under the key `pet`, others have none.

    Raises:
        DataError: as `read_volume` and `read_pet`.
    """
    if row.datatype != "pet":
        return read_volume(path), {}
    volume, record = read_pet(path, config)
    return volume, {"pet": record}


def read_pet(path: Path, config: PreprocessConfig) -> tuple[Volume, Record]:
    """Read a static or dynamic PET file as one image on its own grid, and say what was done.

    Raises:
        HeaderError: the file is refused before its voxels are read, or ends too early.
        GeometryError: its place in the world cannot be trusted.
        IntensityError: its voxels are not finite, or all the same.
        DataError: the frames' times are missing or contradictory, none lies in the window, or the scanner's resolution
            is unknown or coarser than the one asked for.
    """
    path = Path(path)
    series, sidecar = open_series(path), read_sidecar(path)
    # What can be refused by its sidecar is, before a voxel is read.
    blur = _extra_fwhm(sidecar, config, path)
    volume, record = (_static if series.count == 1 else _dynamic)(series, sidecar, config)
    stated = str(sidecar.get("Units", ""))
    unit = recognise(stated)
    record["unit"] = unit.name if unit else UNKNOWN
    record["notes"] += oddities(unit, stated, volume.array)
    if blur is None:
        return volume, record
    sigma = blur["added_fwhm_mm"] / FWHM / spacing_of(volume.affine)
    smooth = gaussian_filter(volume.array, sigma, mode="nearest") if blur["added_fwhm_mm"] else volume.array
    return replace(volume, array=smooth), record | {"resolution": blur}


def _static(series: Series, sidecar: Mapping[str, Any], config: PreprocessConfig) -> tuple[Volume, Record]:
    """One image, of one frame or averaged already: it cannot be cut to the window, but must not miss it."""
    window, record, notes = config.pet_window_s, Record(), list[str]()
    try:
        times = frame_times(sidecar, str(series.path))
        if window and times.origin != "injection":
            raise DataError("InjectionStart is missing")
    except DataError as error:
        if window:
            notes = [f"not held against the window: {str(error).removeprefix(f'{series.path}: ')}"]
    else:
        record, (first, last) = _shared(times, window, series.path)[1], times.span
        if window and (first < window[0] - BEYOND_S or last > window[1] + BEYOND_S):
            notes = [f"is one image of {first:g} to {last:g} s, expected {window[0]:g} to {window[1]:g} s"]
    return read_volume(series.path), record | {"frames": 1, "notes": [*record.get("notes", []), *notes]}


def _dynamic(series: Series, sidecar: Mapping[str, Any], config: PreprocessConfig) -> tuple[Volume, Record]:
    """The mean of the frames, each by its seconds in the window."""
    times, window = frame_times(sidecar, str(series.path), series.count), config.pet_window_s
    if window and times.origin != "injection":
        raise DataError(
            f"{series.path}: InjectionStart is missing, expected it beside a window of {window[0]:g} to {window[1]:g} "
            "s after injection; add it to the sidecar or leave preprocess.pet_window_s out"
        )
    seconds, record = _shared(times, window, series.path)
    record["frames"] = series.count
    if sidecar.get("ImageDecayCorrected") is False:
        record["notes"].append("its frames are not corrected for decay, and later ones count for less")
    motions: dict[int, Motion] = {}
    if config.pet_motion and len(seconds) > 1:
        copies = {index: working_copy(frame) for index, frame in series.frames(seconds)}
        reference, motions = find_motion(copies, {index: float(times.duration[index]) for index in seconds})
        record["motion"] = _motion_record(reference, motions)
        record["notes"] += _motion_notes(motions)
    return _average(series, seconds, motions), record


def _shared(times: FrameTimes, window: Window | None, path: Path) -> tuple[dict[int, float], Record]:
    """Seconds in the window by frame, without the frames that share none."""
    first, last = times.span
    overlap = times.overlap(window)
    seconds = {int(index): float(overlap[index]) for index in np.flatnonzero(overlap)}
    record: Record = {
        "times_after": times.origin,
        "acquired_s": [first, last],
        "window_s": list(window) if window else None,
        "seconds_by_frame": {str(index): round(shared, 3) for index, shared in seconds.items()},
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
    if covered < COVERED:
        record["notes"].append(f"its frames cover {covered:.0%} of the window")
    return seconds, record | {"window_covered": round(covered, 4)}


def _average(series: Series, seconds: Mapping[int, float], motions: Mapping[int, Motion]) -> Volume:
    """Weighted mean, in each voxel over the frames that show it; a moved frame is interpolated once."""
    shape = series.shape
    total, weight = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    for index, frame in series.frames(seconds):
        motion = motions.get(index)
        if motion is None or motion.still:
            array: FloatArray = frame.array
        else:
            array = resample(frame, *frame.grid, motion.to_frame, order=3, background=np.nan)
        shown = np.isfinite(array)
        np.add(total, seconds[index] * array, out=total, where=shown)
        np.add(weight, seconds[index], out=weight, where=shown)
    mean = np.divide(total, weight, out=np.zeros(shape), where=weight > 0).astype(np.float32)
    low, high = float(mean.min()), float(mean.max())
    if low == high:
        raise IntensityError(f"{series.path}: every voxel of its mean is {low:g}, expected an image; export it again")
    return Volume(mean, series.affine, series.path)


def _motion_record(reference: int, motions: Mapping[int, Motion]) -> Record:
    """What was found for each frame, by its index in the file."""
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
    """What a person should look at: frames that lie far apart, and those that could not be placed."""
    furthest, lost = max(motion.mean_mm for motion in motions.values()), [one for one in motions.values() if one.note]
    notes = [f"its head moves by up to {furthest:.1f} mm between frames"] if furthest > LARGE_MM else []
    if lost:
        notes.append(f"{len(lost)} of {len(motions)} frames cannot be registered and are taken to lie as the next does")
    return notes


def _extra_fwhm(sidecar: Mapping[str, Any], config: PreprocessConfig, path: Path) -> Record | None:
    """The Gaussian that takes a scanner's own resolution to the common one: variances add."""
    target = config.pet_resolution_mm
    if target is None:
        return None
    model = str(sidecar.get("ManufacturersModelName", ""))
    own = {name.strip().lower(): value for name, value in config.scanner_resolution_mm.items()}.get(
        model.strip().lower()
    )
    if own is None:
        raise DataError(
            f"{path}: the resolution of scanner '{model[:60]}' is not known, expected one of "
            f"{sorted(config.scanner_resolution_mm)}; add it to preprocess.scanner_resolution_mm"
        )
    if own > target:
        raise DataError(
            f"{path}: scanner '{model}' resolves {own:g} mm, expected at most preprocess.pet_resolution_mm, {target:g} "
            "mm; raise the common resolution"
        )
    return {
        "scanner": model,
        "own_fwhm_mm": own,
        "fwhm_mm": target,
        "added_fwhm_mm": round(float((target**2 - own**2) ** 0.5), 4),
    }
