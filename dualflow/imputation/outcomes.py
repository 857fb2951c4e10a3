"""Outcomes of an analysis: regions, meta-regions, asymmetries and ratios, each computed on every completed table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dualflow.errors import ConfigError
from dualflow.imaging.atlas import side

Floats = NDArray[np.float64]
ASYMMETRY, RATIO = "asymmetry", "/"


def add_outcomes(
    values: Floats, regions: Sequence[str], *, asymmetries: bool = False, ratios: Sequence[str] = ()
) -> tuple[Floats, tuple[str, ...]]:
    """Append derived outcomes to region values `[..., R]`.

    Draws are joint over regions, so an outcome of several regions needs no law of its own.

    Args:
        values: region means, in SUVR.
        regions: their names.
        asymmetries: whether to add `NAME asymmetry`, 2 (left - right) / (left + right), of every pair of hemispheres.
        ratios: further outcomes `A/B`, where A and B are regions.

    Raises:
        ConfigError: a ratio does not name two regions.
    """
    names, columns = list(regions), [values]
    if asymmetries:
        for left, right in hemispheres(regions).items():
            one, other = (values[..., names.index(name)] for name in (left, right))
            columns.append((2 * (one - other) / (one + other))[..., None])
    names += [f"{_without_side(left)} {ASYMMETRY}" for left in hemispheres(regions)] if asymmetries else []
    for ratio in ratios:
        above, _, below = ratio.partition(RATIO)
        unknown = [name for name in (above, below) if name not in regions]
        if unknown:
            raise ConfigError(
                f"ratio '{ratio}': no region named '{unknown[0]}'; write REGION/REGION with names of the region table, "
                f"such as {regions[0]}{RATIO}{regions[-1]}"
            )
        columns.append((values[..., regions.index(above)] / values[..., regions.index(below)])[..., None])
        names.append(ratio)
    return np.concatenate(columns, axis=-1), tuple(names)


def hemispheres(regions: Sequence[str]) -> dict[str, str]:
    """Left region -> right region, of the regions with both."""
    mirrored: Callable[[str], str] = lambda name: name.replace("Left-", "Right-").replace("ctx-lh-", "ctx-rh-")  # noqa: E731
    return {name: mirrored(name) for name in regions if side(name) == "left" and mirrored(name) in regions}


def _without_side(name: str) -> str:
    from dualflow.imaging.atlas import merged_name

    return merged_name(name)
