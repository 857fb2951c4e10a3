from collections import Counter

import numpy as np

from dualflow.cohort import participants


def test_person_does_not_depend_on_cohort_size():
    """Person i of a seed is the same in a small and a large cohort, and other seeds give other people."""
    assert participants(5, 7) == participants(20, 7)[:5]
    assert participants(5, 7) != participants(5, 8)


def test_every_block_of_six_is_balanced():
    """Each block of six holds every diagnosis at both sites."""
    people = participants(24, 0)
    for start in range(0, 24, 6):
        block = people[start : start + 6]
        assert Counter((p.diagnosis, p.site) for p in block) == Counter(
            (d, s) for d in ("CN", "MCI", "AD") for s in "AB"
        )


def test_some_values_are_unreported():
    """A few per cent of the values are missing, not none and not many."""
    people = participants(300, 0)
    assert 0.01 < np.mean([len(p.unreported) / 3 for p in people]) < 0.08


def test_metabolism_is_coupled_to_atrophy_but_not_determined_by_it():
    """Within a diagnosis the two severities correlate clearly below 1."""
    people = [p for p in participants(600, 0) if p.diagnosis == "MCI"]
    r = np.corrcoef([p.atrophy for p in people], [p.metabolism for p in people])[0, 1]
    assert 0.4 < r < 0.85


def test_generators_of_purposes_differ():
    """Streams of one person are independent of each other and reproducible."""
    person = participants(1, 0)[0]
    a, b = (person.generator(name).standard_normal(4) for name in ("mr", "pet"))
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, person.generator("mr").standard_normal(4))
