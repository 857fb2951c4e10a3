"""Units of PET: spellings, and warnings if the values do not match."""

from __future__ import annotations

import numpy as np
import pytest

from dualflow.imaging.units import parse_unit, unit_warnings

SCAN = np.random.default_rng(0).gamma(4.0, 1.0, (12, 12, 12)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("Bq/mL", ["Bq/mL", "bq/ml", "BQML", "Bq mL^-1", "Bq.mL-1", "Bq/cc", "Becquerels/mL"]),
        ("kBq/mL", ["kBq/mL", "KBQ_ML", "kBq/cm^3"]),
        ("MBq/mL", ["MBq/ml"]),
        ("SUV (g/mL)", ["SUV", "suv", "SUVbw", "g/mL", "GML", "SUV (g/mL)", "{SUVbw}g/ml", "g/ml{SUVbw}"]),
        ("SUVR", ["SUVR", "suvr", "ratio"]),
        (None, ["", "CNTS", "PROPCPS", "1/cm", "mL", "Bq", "SUVRR"]),
    ],
)
def test_all_spellings_of_a_unit_are_recognised(name, spellings):
    """All spellings of a unit have one name; other texts are no unit."""
    parsed = {spelling: parse_unit(spelling) for spelling in spellings}
    assert {spelling: unit and unit.name for spelling, unit in parsed.items()} == dict.fromkeys(spellings, name)


@pytest.mark.parametrize(("stated", "scale"), [("Bq/mL", 3000), ("kBq/mL", 3), ("SUV", 1), ("SUVR", 0.3), ("", 7)])
def test_plausible_values_cause_no_warning(stated, scale):
    """Typical values of each unit, and any values without a unit."""
    assert unit_warnings(parse_unit(stated), stated, np.float32(scale) * SCAN) == []


@pytest.mark.parametrize(
    ("stated", "scale", "words"),
    [
        ("SUV", 3000, "check Units"),
        ("Bq/mL", 1, "check Units"),
        ("kBq/mL", 3000, "check Units"),
        ("SUVR", 3000, "check Units"),
        ("CNTS", 1, "'CNTS' is unknown"),
    ],
)
def test_values_of_another_unit_cause_a_warning(stated, scale, words):
    """A file in Bq/mL that states SUV, the reverse, and an unknown unit."""
    (note,) = unit_warnings(parse_unit(stated), stated, np.float32(scale) * SCAN)
    assert words in note


def test_large_negative_values_cause_a_warning():
    """Noise of filtered backprojection causes none; a lost offset does."""
    assert unit_warnings(None, "", SCAN - 2) == []
    (note,) = unit_warnings(None, "", SCAN - 8)
    assert "negative" in note
