"""Views of test people: which trainings their captions name."""

import numpy as np
import pytest

from dualflow.config import parse_config
from dualflow.imaging.affines import MNI
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.volume import write_volume
from dualflow.report.subject_views import _mean_error


@pytest.mark.parametrize("seeds", [[3], [3, 4]])
def test_pictures_of_one_of_several_seeds_say_so(tmp_path, seeds):
    """The tables average all seeds, so that another person may be the worst there."""
    config = parse_config({
        "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
        "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
        "train": {"seeds": seeds},
    })  # fmt: skip
    volume = np.pad(np.full((8, 8, 8), 0.1, np.float32), 4)
    for kind in ("bias", "error"):
        path = config.layout.error_map(kind, config.model.preset, 3)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, volume, model_grid(config.preprocess)[0], codes=MNI)
    (figure,) = _mean_error(config, 7)
    note = " Of the trainings with seed 3 alone; tables average all seeds."
    assert figure.caption.endswith(note) is (len(seeds) > 1)
    assert "averaged over 7 test subjects" in figure.caption
