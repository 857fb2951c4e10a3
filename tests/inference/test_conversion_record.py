"""What the manifest of a conversion holds."""

from dualflow.inference.conversion_record import side_values


def test_side_values_are_those_the_model_takes(card):
    """Other columns are left out, and NaN is unknown."""
    assert side_values(card, {"age": float("nan"), "scan": "sub-1"}) == {"age": None}
    assert side_values(card, {"age": 71.0}) == {"age": 71.0}
    assert side_values(card, {}) == {"age": None}
