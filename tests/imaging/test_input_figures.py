"""Figures of a scan's input, from records with and without the newer keys."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dualflow.imaging.input_figures import input_figures
from dualflow.imaging.record import quality_record
from dualflow.imaging.registration import Alignment

OBLIQUE = np.array([[0, 0, 3.0, 0], [0.6, 0.8, 0, 0], [-0.8, 0.6, 0, 0], [0, 0, 0, 1]])
MASK = {"solidity": 0.9, "core": 0.99, "outside": 0.01, "missing": 0.02, "symmetry": 0.95, "stretch": 1.1}


@pytest.fixture
def record():
    turned = Alignment(np.diag([1.1, -0.9, -1.0, 1.0]), 0.6, 12.0, 0.96, in_view=0.98)
    quality = {"brain_ml": 1400.0, "brain_mask": MASK, "source_to_template": quality_record(turned)}
    return {"native_grid": {"affine": OBLIQUE.tolist(), "shape": [3, 4, 5]}, "quality": quality}


def test_every_figure_of_a_record_is_named(record):
    """The largest edge does not depend on the axes' order, and a half turn has 180 degrees."""
    figures = input_figures(record)
    assert figures == {
        "voxel_mm": 3.0,
        "brain_ml": 1400.0,
        **{f"mask_{name}": value for name, value in MASK.items()},
        "template_mi": 0.6,
        "template_dice": 0.96,
        "coverage": 0.98,
        "rotation_deg": pytest.approx(180),
    }


def test_an_older_record_has_unknown_figures(record):
    """Rotation and coverage are NaN, and the others are read."""
    for key in ("rotation_deg", "coverage"):
        del record["quality"]["source_to_template"][key]
    figures = input_figures(record)
    assert {name for name, value in figures.items() if math.isnan(value)} == {"rotation_deg", "coverage"}
    del record["quality"]
    assert [name for name, value in input_figures(record).items() if not math.isnan(value)] == ["voxel_mm"]
