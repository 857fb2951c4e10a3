"""The names of the baselines in the configuration, and which of them take gradient steps."""

from __future__ import annotations

from typing import get_args

from dualflow.baselines.correction import Correction
from dualflow.baselines.registry import BASELINES
from dualflow.config.learning import SEEDED, BaselineName


def test_the_configuration_names_the_rows():
    """The configuration takes each row of the registry, and knows which have gradient steps without importing torch."""
    assert get_args(BaselineName) == tuple(BASELINES)
    assert tuple(name for name, row in BASELINES.items() if issubclass(row.kind, Correction)) == SEEDED
