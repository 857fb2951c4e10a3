"""Which features of a stacked mean are candidates."""

from __future__ import annotations

import pytest
import torch
from regression_scans import SHAPE, SIDE, make_scans

from dualflow.flows.abnormality import abnormality_rows
from dualflow.flows.design_choice import DesignChoice
from dualflow.flows.rich_features import RichFeatures

BRIGHT = next(row for row in abnormality_rows(1) if row.name == "bright in channel 0 from 3 sd")


@pytest.mark.parametrize(("people", "each", "shown"), [(5, 1, False), (6, 1, True), (5, 2, False)])
def test_an_abnormality_needs_as_many_people_as_it_has_features(people, each, shown):
    """Visits of one person count once."""
    scans = [scan._replace(subject=index // 2) for index, scan in enumerate(make_scans(24))]
    deviations = [torch.zeros(1, *SHAPE) for _ in scans]
    for person in range(people):
        for visit in range(each):
            deviations[2 * person + visit][0, 4, 4, 4] = 5.0
    choice = DesignChoice(RichFeatures(SHAPE, 1), scans, torch.zeros(24, SIDE), torch.ones(SHAPE, dtype=torch.bool))
    assert (BRIGHT in choice._candidates(deviations)) == shown
