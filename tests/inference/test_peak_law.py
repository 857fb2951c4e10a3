"""PeakLaw: thresholds for people without lesions, from groups with and without lesions."""

import numpy as np
import pytest

from dualflow.inference.peak_law import PeakLaw


def peaks(count, seed=0):
    """Largest of many normal values, as in a map."""
    return np.random.default_rng(seed).normal(size=(count, 4, 2000)).max(axis=2)


def false_flags(law, rate, count=2000):
    fresh = peaks(count, seed=1)
    return np.mean([law.standardised(row).max() > law.threshold(rate) for row in fresh])


@pytest.mark.parametrize(("count", "most"), [(10, 0.09), (20, 0.06), (60, 0.06), (200, 0.06)])
def test_rate_without_lesions(count, most):
    """The share of fresh people above the threshold is about the rate, with few people up to twice as high."""
    shares = [false_flags(PeakLaw.fit(peaks(count, seed)), 0.02, 200) for seed in range(2, 42)]
    assert 0.005 < np.mean(shares) < most


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
def test_lesions_hardly_move_the_threshold(share):
    """Lesions of up to two in five people leave rate and sensitivity about as they are."""
    values = peaks(100)
    values[: int(100 * share), 1] += 6
    law = PeakLaw.fit(values)
    assert law.people >= 95 - 100 * share
    assert false_flags(law, 0.02) < 0.06
    lesion = np.array([3.5, 7.0, 3.5, 3.5])
    assert law.standardised(lesion).max() > law.threshold(0.02)


def test_normal_peaks_are_flagged_at_the_rate():
    """With the reciprocals exactly normal, the rate is twice the wanted one for ten people, and right for thirty."""
    rng = np.random.default_rng(0)

    def rate(people):
        laws = [PeakLaw.fit(-1 / rng.normal(-0.28, 0.02, (people, 4))) for _ in range(200)]
        fresh = -1 / rng.normal(-0.28, 0.02, (200, 20, 4))
        flagged = [
            law.standardised(rows).max(axis=1) > law.threshold(0.02) for law, rows in zip(laws, fresh, strict=True)
        ]
        return np.mean(flagged)

    assert rate(10) < 0.055
    assert rate(30) < 0.03


@pytest.mark.parametrize("people", [10, 20])
def test_lesions_are_found_with_few_people(people):
    """Three in ten training people have lesions of the same kind, and so has a new person."""
    values = peaks(people, seed=3)
    values[: round(0.3 * people), 1] += 6
    law = PeakLaw.fit(values)
    assert law.standardised(np.array([3.5, 9.5, 3.5, 3.5])).max() > law.threshold(0.02)


def test_values_restore_the_law():
    """The law is restored from its JSON values."""
    law = PeakLaw.fit(peaks(30))
    restored = PeakLaw.from_values(law.values())
    assert restored.threshold(0.02) == law.threshold(0.02)
    assert np.array_equal(restored.standardised(peaks(1)[0]), law.standardised(peaks(1)[0]))


@pytest.mark.parametrize("people", [60, 120])
def test_common_lesions_of_all_sizes_are_found(people):
    """A third of the people have lesions, whose peaks reach from those of people without to far beyond."""
    rng = np.random.default_rng(0)
    with_lesions = people // 3

    def draw(count):
        return -1 / rng.normal(-0.27, 0.03, (count, 4))

    def lesions(count):
        return -1 / np.minimum(rng.normal(-0.15, 0.04, count), -0.05)

    missed, false = [], []
    for _ in range(10):
        values = draw(people)
        values[:with_lesions, 1] = lesions(with_lesions)
        law = PeakLaw.fit(values)
        fresh, scan = draw(200), draw(200)
        scan[:, 1] = lesions(200)
        missed.append(np.mean(law.standardised(scan).max(axis=1) < law.threshold(0.02)))
        false.append(np.mean(law.standardised(fresh).max(axis=1) > law.threshold(0.02)))
    assert np.mean(missed) < 0.45
    assert np.mean(false) < 0.03
