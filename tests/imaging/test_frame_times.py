"""When frames were acquired, by their sidecar."""

from __future__ import annotations

import pytest

from dualflow.errors import DataError
from dualflow.imaging.frame_times import frame_times

GOOD = {"FrameTimesStart": [0, 60, 180], "FrameDuration": [60, 120, 300], "InjectionStart": 0, "ScanStart": 0}


def test_times_count_from_the_injection():
    """Whatever the sidecar's zero is, a frame's start is told from the injection."""
    shifted = GOOD | {"FrameTimesStart": [1800, 1860, 1980], "InjectionStart": -600, "ScanStart": 1800}
    times = frame_times(shifted, "pet.nii", 3)
    assert times.start.tolist() == [2400, 2460, 2580]
    assert times.span == (2400, 2880)
    assert times.origin == "injection"


def test_without_injection_times_count_from_the_sidecars_zero():
    """The origin says so, and `n/a` is as good as nothing."""
    times = frame_times(GOOD | {"InjectionStart": "n/a"}, "pet.nii", 3)
    assert (times.span, times.origin) == ((0, 480), "TimeZero")


@pytest.mark.parametrize(
    ("window", "shared"),
    [(None, [60, 120, 300]), ((90, 240), [0, 90, 60]), ((480, 900), [0, 0, 0]), ((-10, 1e6), [60, 120, 300])],
)
def test_a_frame_counts_for_its_seconds_in_the_window(window, shared):
    """Frames are cut by the window to the second; one that only touches it shares nothing."""
    assert frame_times(GOOD, "pet.nii").overlap(window).tolist() == shared


def test_rounded_starts_are_taken():
    """A scanner that writes the start of a frame to the nearest second contradicts nothing."""
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
    """Each has its message, which starts with the image's name."""
    with pytest.raises(DataError, match=words) as caught:
        frame_times(GOOD | change, "pet.nii", 3)
    assert str(caught.value).startswith("pet.nii: ")
