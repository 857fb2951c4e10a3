"""The picture of edits: changes are those of measured voxels."""

import numpy as np
import pandas as pd

from dualflow.imaging.intensity import INSIDE
from dualflow.imaging.meta_regions import meta_regions
from dualflow.modalities import modality
from dualflow.report.edit_figure import edit_figure


def test_voxels_that_the_pet_does_not_show_have_no_change():
    """An edit starts from the flow's mean there; as a change it would hide those of all other voxels."""
    mask = np.ones((8, 8, 8), bool)
    measured = np.ones((8, 8, 8), np.float32)
    measured[:, :, :4] = INSIDE
    regions = pd.DataFrame({"region": list(meta_regions()), "age": "60", "suvr": 1.03, "measured": 1.0})
    edited = np.full((8, 8, 8), 1.03, np.float32)
    figure = edit_figure(measured, measured, [edited], mask, modality("FDG"), "age", ["60"], regions)
    [change] = [axes.images[0] for axes in figure.axes if axes.get_title("left") == "change"]
    assert 0.03 <= change.get_clim()[1] < 0.1
