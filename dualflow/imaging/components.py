"""Connected components of a mask."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

from dualflow.arrays import Bools


def largest_component(mask: Bools) -> Bools:
    """Largest connected component of a mask, by faces; empty if the mask is. Of equal ones it is the first."""
    components, _ = label(mask)
    return np.asarray(components == 1 + np.bincount(components.ravel(), minlength=2)[1:].argmax())
