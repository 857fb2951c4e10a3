"""Outcomes of several regions, for the benchmark of imputation: what only joint draws get right.

A mean of regions, a ratio and an asymmetry depend on how the errors of regions vary together. Draws whose regions are
independent are too narrow for a mean and too wide for an asymmetry.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualflow.arrays import Doubles
from dualflow.imaging.atlas import merged_name
from dualflow.imaging.meta_regions import meta_regions
from dualflow.imputation.completion import add_meta_regions
from dualflow.imputation.outcomes import ASYMMETRY, RATIO, add_outcomes

SIGNATURE, OTHER = "AD signature", "frontal"
PAIR = ("ctx-lh-inferiorparietal", "ctx-rh-inferiorparietal")
JOINT = (SIGNATURE, f"{SIGNATURE}{RATIO}{OTHER}", f"{merged_name(PAIR[0])} {ASYMMETRY}")
"""A meta-region, a ratio of two, and an asymmetry."""


def add_joint_outcomes(values: Doubles, regions: Sequence[str], weights: Doubles) -> tuple[Doubles, tuple[str, ...]]:
    """Append the joint outcomes to region values `[M, N, R]`, as `dualflow analyse` computes them.

    Args:
        values: region means, in SUVR.
        regions: their names.
        weights: of the meta-regions in each scan `[N, G, R]`.

    Returns:
        The values `[M, N, R + J]` and the names of the outcomes; a grid without the pair of regions has no asymmetry.
    """
    whole, names = add_meta_regions(values, weights), [*regions, *meta_regions()]
    used = [name for name in (*PAIR, SIGNATURE, OTHER) if name in names]
    parts = whole[..., [names.index(name) for name in used]]
    outcomes, labels = add_outcomes(parts, used, asymmetries=True, ratios=[JOINT[1]])
    chosen = [name for name in JOINT if name in labels]
    columns = [labels.index(name) for name in chosen]
    return np.concatenate([values, outcomes[..., columns]], axis=-1), (*regions, *chosen)
