"""The held-out people that the report shows: those with the smallest, the median and the largest error."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from dualflow.layout import Scan


class ShownPerson(NamedTuple):
    """A scan that stands for a rank among the held-out people.

    Attributes:
        role: `best`, `median` or `worst`.
        scan: the person's scan; of several visits the one whose error is nearest to the person's mean.
        mae: mean absolute error of that scan, in the target's unit.
        rank: rank of the person's error, 1 is the smallest.
    """

    role: str
    scan: str
    mae: float
    rank: int


def shown_people(scores: pd.DataFrame, model: str, seed: int) -> list[ShownPerson]:
    """The best, median and worst person by the MAE of one model; with fewer than three people, those that exist.

    Args:
        scores: one row per model, seed and scan, with columns `model`, `seed`, `scan` and `mae`.
        model: the model whose images are shown.
        seed: its seed.
    """
    rows = scores[(scores["model"] == model) & (scores["seed"] == seed)]
    table = pd.DataFrame({"scan": rows["scan"].astype(str), "mae": rows["mae"].astype(float)})
    table["person"] = [Scan.parse(key).subject for key in table["scan"]]
    table["mean"] = table.groupby("person")["mae"].transform("mean")
    table["distance"] = (table["mae"] - table["mean"]).abs()
    nearest = table.sort_values(["mean", "person", "distance", "scan"]).drop_duplicates("person")
    people = list(zip(nearest["scan"], nearest["mae"], strict=True))
    count = len(people)
    ranks = {"best": 0, "median": (count - 1) // 2, "worst": count - 1}
    roles = {rank: role for role, rank in reversed(ranks.items())}
    return [ShownPerson(roles[rank], *people[rank], rank + 1) for rank in sorted(roles)] if count else []
