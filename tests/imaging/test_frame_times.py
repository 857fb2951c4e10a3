"""Acquisition times of PET frames from the sidecar."""

from __future__ import annotations

import pytest

from dualflow.errors import DataError
from dualflow.imaging.frame_times import frame_times

GOOD = {"FrameTimesStart": [0, 60, 180], "FrameDuration": [60, 120, 300], "InjectionStart": 0, "ScanStart": 0}


def test_times_are_relative_to_the_injection():
    """Starts are converted from the sidecar's time zero to seconds after injection."""
    shifted = GOOD | {"FrameTimesStart": [1800, 1860, 1980], "InjectionStart": -600, "ScanStart": 1800}
    times = frame_times(shifted, "pet.nii", 3)
    assert times.start.tolist() == [2400, 2460, 2580]
    assert times.span == (2400, 2880)
    assert times.origin == "injection"


def test_without_injection_times_are_relative_to_time_zero():
    """`n/a` counts as missing, and the origin is recorded."""
    times = frame_times(GOOD | {"InjectionStart": "n/a"}, "pet.nii", 3)
    assert (times.span, times.origin) == ((0, 480), "TimeZero")


@pytest.mark.parametrize(
    ("window", "overlap"),
    [(None, [60, 120, 300]), ((90, 240), [0, 90, 60]), ((480, 900), [0, 0, 0]), ((-10, 1e6), [60, 120, 300])],
)
def test_overlap_of_frames_with_a_window(window, overlap):
    """The overlap is exact to the second; a frame that only touches the window has none."""
    assert frame_times(GOOD, "pet.nii").overlap(window).tolist() == overlap


def test_rounded_starts_are_accepted():
    """Starts that are rounded to the nearest second do not contradict the durations."""
    frame_times(GOOD | {"FrameTimesStart": [0, 59.4, 179.2]}, "pet.nii", 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"FrameTimesStart": None}, "FrameTimesStart is missing"),
        ({"FrameDuration": "n/a"}, "FrameDuration is missing"),
        ({"FrameDuration": [60, 120]}, "FrameTimesStart has 3 and FrameDuration 2 entries, expected 3"),
        ({"FrameDuration": [60, "120", 300]}, "expected the seconds of each frame"),
        ({"FrameDuration": [60, True, 300]}, "expected the seconds of each frame"),
        ({"FrameDuration": [60, 10**400, 300]}, "expected the seconds of each frame"),
        ({"FrameDuration": [60, 0, 300]}, "holds 0 s"),
        ({"FrameTimesStart": [0, 60, 150]}, "frame 1 starts at 60 s and lasts 120 s"),
        ({"FrameTimesStart": [0, 180, 60]}, "one after the other"),
        ({"FrameTimesStart": [0, 60e3, 180e3], "FrameDuration": [60e3, 120e3, 300e3]}, "not milliseconds"),
        ({"ScanStart": 1800, "FrameTimesStart": [0, 60, 180]}, "before ScanStart"),
        ({"InjectionStart": 5000}, "before InjectionStart"),
        ({"InjectionStart": "12:30:00"}, "InjectionStart is 12:30:00, expected seconds"),
    ],
)
def test_missing_and_contradictory_times_are_refused(change, words):
    """The error names the image and the problem."""
    with pytest.raises(DataError, match=words) as caught:
        frame_times(GOOD | change, "pet.nii", 3)
    assert str(caught.value).startswith("pet.nii: ")
