"""The frame of the networks: their size."""

from __future__ import annotations

import pytest

from dualflow.baselines.correction import Correction, width_for
from dualflow.baselines.registry import BASELINES

NETWORKS = {name: row.kind for name, row in BASELINES.items() if issubclass(row.kind, Correction)}


@pytest.mark.parametrize("name", NETWORKS)
def test_width_for_matches_the_number_of_parameters(name):
    """The chosen width has the number of parameters closest to the requested one, within a factor of 3."""
    kind, parameters = NETWORKS[name], 400_000
    width = width_for(kind, parameters, 3)
    assert width in kind.widths
    model = kind((8, 8, 8), 3, width=width)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert parameters / 3 < count < 3 * parameters
