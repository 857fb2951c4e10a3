"""Connected components of a mask."""

import numpy as np
import pytest

from dualflow.imaging.components import largest_component


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        pytest.param([1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 0], id="largest"),
        pytest.param([0, 1, 0, 1], [0, 1, 0, 0], id="first of equal ones"),
        pytest.param([0, 0, 0], [0, 0, 0], id="empty"),
        pytest.param([[1, 0], [0, 1]], [[1, 0], [0, 0]], id="voxels that share an edge only are apart"),
    ],
)
def test_the_largest_component_remains(mask, expected):
    """A component is connected by faces."""
    assert largest_component(np.array(mask, bool)).tolist() == np.array(expected, bool).tolist()
