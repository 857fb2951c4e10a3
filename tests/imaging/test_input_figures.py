"""Figures of a scan's preprocessing."""

import numpy as np
import pytest

from dualflow.imaging.input_figures import input_figures

RECORD = {
    "native_grid": {"affine": np.diag([1.0, 1.2, 3.0, 1.0]).tolist(), "shape": [4, 4, 4]},
    "quality": {
        "brain_ml": 1400.0,
        "brain_mask": {"missing": 0.01, "stretch": 1.1},
        "source_to_template": {"mutual_information_nats": 0.6, "overlap": 0.95, "rotation_deg": 12.0},
    },
}


def test_figures_are_read_from_the_record():
    """The coarsest edge counts."""
    assert input_figures(RECORD) == pytest.approx(
        {"voxel_mm": 3, "rotation_deg": 12, "template_mi": 0.6, "dice": 0.95, "brain_ml": 1400, "missing": 0.01}
        | {"stretch": 1.1}
    )


def test_a_record_of_an_older_version_lacks_the_rotation():
    """It is unknown, which no check takes for an error."""
    template = {"mutual_information_nats": 0.6, "overlap": 0.95}
    record = RECORD | {"quality": RECORD["quality"] | {"source_to_template": template}}
    assert np.isnan(input_figures(record)["rotation_deg"])
