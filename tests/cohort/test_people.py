"""Subjects of a simulated cohort."""

from collections import Counter

import numpy as np

from dualflow.cohort import participants


def test_subjects_do_not_depend_on_the_cohort_size():
    """Subject i of a seed is the same in every cohort; another seed gives other subjects."""
    assert participants(5, 7) == participants(20, 7)[:5]
    assert participants(5, 7) != participants(5, 8)


def test_every_block_of_six_is_balanced():
    """Each block of six has every diagnosis at both sites."""
    subjects = participants(24, 0)
    for start in range(0, 24, 6):
        block = subjects[start : start + 6]
        assert Counter((p.diagnosis, p.site) for p in block) == Counter(
            (d, s) for d in ("CN", "MCI", "AD") for s in "AB"
        )


def test_some_values_are_unreported():
    """Between 1 and 8 % of the values are missing."""
    subjects = participants(300, 0)
    assert 0.01 < np.mean([len(p.unreported) / 3 for p in subjects]) < 0.08


def test_metabolism_correlates_with_atrophy():
    """Within a diagnosis, the correlation of both severities is between 0.4 and 0.85."""
    subjects = [p for p in participants(600, 0) if p.diagnosis == "MCI"]
    r = np.corrcoef([p.atrophy for p in subjects], [p.metabolism for p in subjects])[0, 1]
    assert 0.4 < r < 0.85


def test_generators_of_purposes_differ():
    """A subject's random streams differ and are reproducible."""
    subject = participants(1, 0)[0]
    a, b = (subject.generator(name).standard_normal(4) for name in ("mr", "pet"))
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, subject.generator("mr").standard_normal(4))
