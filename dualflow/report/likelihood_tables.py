"""What the flows learnt, in small tables: use of the source, images they give, variance explained, and safety."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import pandas as pd

from dualflow.evaluation.condition_check import ConditionCheck, condition_check
from dualflow.evaluation.statistics import subject_means
from dualflow.modalities import Modality
from dualflow.report.tables import Table, plain_table

RIVALS = {"nll_wrong": "another person's", "nll_blurred": "own, blurred"}
IMAGES = {
    "mae": "Point estimate",
    "mae_temperature0": "Temperature 0",
    "mae_one_sample": "One sample",
    "mae_sample_mean": "Mean of samples",
}
# Column names up to the level's number, and what a heading says after it.
EXPLAINED = {"explained_level_": "", "explained_other_level_": ", another's source"}
ROUND_TRIPS = ("round_trip_float32", "round_trip_float64")


def check_against(scores: pd.DataFrame, model: str, rival: str = "nll_wrong") -> ConditionCheck | None:
    """Whether targets are likelier under their own source than under `rival`, a key of RIVALS; None for no flow."""
    own = scores[scores["model"] == model]
    if rival not in own or own[rival].isna().all():
        return None
    people = subject_means(own, ["nll_true", rival])
    return condition_check(people["nll_true"].to_numpy(), people[rival].to_numpy())


def learnt(scores: pd.DataFrame, flows: Sequence[str]) -> pd.DataFrame:
    """One row per flow: means over people of what only a flow has, its two checks, and its largest round-trip errors.

    A check has `share`, `low`, `high` and `gain` of `ConditionCheck`, under names such as `nll_wrong/share`.
    """
    columns = ["nll_true", *RIVALS, *IMAGES, "sample_seconds", *_levels(scores)]
    rows = []
    for name in flows:
        own = scores[scores["model"] == name]
        # Seeds and visits of one person are no independent evidence.
        row = subject_means(own, columns).reindex(columns=columns).mean().to_dict()
        for rival in RIVALS:
            # A broken flow has no density to check, and is shown as that.
            check = check_against(scores, name, rival) or ConditionCheck(nan, nan, nan, 0, nan)
            row |= {f"{rival}/{key}": float(getattr(check, key)) for key in ("share", "low", "high", "gain")}
        rows.append({"model": name, **row, **own[list(ROUND_TRIPS)].max().to_dict()})
    return pd.DataFrame(rows)


def source_table(numbers: pd.DataFrame) -> Table:
    """How much likelier the real targets are under their own source, from `learnt`."""
    rows = [
        {
            "Model": row["model"],
            "Rival source": label,
            "NLL, own source": row["nll_true"],
            "NLL, rival": row[rival],
            "Own is better by": row[f"{rival}/gain"],
            "Own wins": "{:.0f} % [{:.0f}, {:.0f}]".format(
                *(100 * row[f"{rival}/{k}"] for k in ("share", "low", "high"))
            ),
        }
        for row in numbers.to_dict("records")
        for rival, label in RIVALS.items()
    ]
    caption = (
        "NLL of the real images in nats per voxel of the mask, and the share of people whose own source makes their "
        "image likelier, with its 95 % interval. Rivals stay in the person's own brain mask; the blur is 8 mm SD."
    )
    return plain_table(pd.DataFrame(rows), caption, digits=4)


def image_table(numbers: pd.DataFrame, row: Modality) -> Table:
    """Errors of the images that a flow can give for one source, from `learnt`."""
    frame = numbers[["model", *IMAGES, "sample_seconds"]]
    names = {"model": "Model", **IMAGES, "sample_seconds": "Seconds per sample"}
    caption = (
        f"Mean absolute error ({row.unit}) of each image that a flow can give. A sample must err more than the mean: "
        "it shows one possible scan, not the expected one."
    )
    return plain_table(frame.rename(columns=names), caption, digits=4)


def explained_table(numbers: pd.DataFrame) -> Table:
    """Share of the latents' variance that the prior's mean explains, level by level, from `learnt`."""
    frame = numbers[["model", *_levels(numbers)]].rename(columns={"model": "Model"})
    for start, heading in EXPLAINED.items():
        frame.columns = frame.columns.str.replace(f"^{start}(.*)", rf"Level \1{heading}", regex=True)
    caption = (
        "Share of the variance of a scan's latents that the prior's mean explains; level 1 is the finest. What another "
        "person's source explains is what all people share. Where a mean image has taken out what can be explained, "
        "nothing is left."
    )
    return plain_table(frame, caption)


def safety_table(numbers: pd.DataFrame, stress: pd.DataFrame | None, row: Modality) -> Table:
    """Round trips, from `learnt`, and the stress test, from `stress_totals`."""
    frame = pd.DataFrame({"Model": numbers["model"]})
    for column, kind in zip(ROUND_TRIPS, ("float32", "float64"), strict=True):
        frame[f"Round trip, {kind}"] = [f"{error:.1e}" for error in numbers[column]]
    if stress is not None:
        found = stress.set_index("model").loc[numbers["model"]].reset_index()
        frame["Stress samples"], frame["Voxels not finite"] = found["samples"], found["nonfinite_voxels"]
        frame[f"Largest value ({row.unit})"] = found["largest"]
    caption = (
        "Largest error of decoding what was encoded, and what many samples over temperatures 0 to 1 and over own and "
        "others' sources held."
        if stress is not None
        else "Largest error of decoding what was encoded. No stress samples were drawn (evaluate.stress: 0)."
    )
    return plain_table(frame, caption, digits=2)


def stress_totals(tables: pd.DataFrame) -> pd.DataFrame:
    """Samples, voxels that were not finite, and the largest finite value of each flow, over its stress tables."""
    totals = {"samples": "sum", "nonfinite_voxels": "sum", "largest": "max"}
    return tables.groupby("model", sort=False).agg(totals).reset_index()


def _levels(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table if str(column).startswith(tuple(EXPLAINED))]
