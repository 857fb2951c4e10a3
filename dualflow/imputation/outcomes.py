"""Outcomes of an analysis: regions, meta-regions, asymmetries and ratios, each computed on every completed table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualflow.arrays import Doubles
from dualflow.errors import ConfigError
from dualflow.imaging.atlas import merged_name, side

ASYMMETRY, RATIO = "asymmetry", "/"


def add_outcomes(
    values: Doubles, regions: Sequence[str], *, asymmetries: bool = False, ratios: Sequence[str] = ()
) -> tuple[Doubles, tuple[str, ...]]:
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
    for left, right in hemispheres(regions).items() if asymmetries else ():
        one, other = (values[..., regions.index(name)] for name in (left, right))
        columns.append((2 * (one - other) / (one + other))[..., None])
        names.append(f"{merged_name(left)} {ASYMMETRY}")
    for ratio in dict.fromkeys(ratios):
        above, below = _two_regions(ratio, regions)
        columns.append((values[..., regions.index(above)] / values[..., regions.index(below)])[..., None])
        names.append(ratio)
    return np.concatenate(columns, axis=-1), tuple(names)


def _two_regions(ratio: str, regions: Sequence[str]) -> tuple[str, str]:
    """The regions of a ratio; names of meta-regions such as `Braak III/IV` may hold a slash themselves."""
    places = [place for place, character in enumerate(ratio) if character == RATIO]
    pairs = [(ratio[:place], ratio[place + 1 :]) for place in places] or [(ratio, "")]
    for above, below in pairs:
        if above in regions and below in regions:
            return above, below
    unknown = next(name for name in pairs[0] if name not in regions)
    raise ConfigError(
        f"ratio '{ratio}': no region named '{unknown}'; write REGION/REGION with names of the region table, "
        f"such as {regions[0]}{RATIO}{regions[-1]}"
    )


def hemispheres(regions: Sequence[str]) -> dict[str, str]:
    """Left region -> right region, of the regions with both."""
    pairs = {name: name.replace("Left-", "Right-").replace("ctx-lh-", "ctx-rh-") for name in regions}
    return {left: right for left, right in pairs.items() if side(left) == "left" and right in regions}
