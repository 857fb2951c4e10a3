"""Tables on the flows: use of the source, accuracy of samples, explained latent variance, and numerical stability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, nan

import numpy as np
import pandas as pd

from dualflow.data.markdown import UNKNOWN
from dualflow.evaluation.condition_check import ConditionCheck, subject_check
from dualflow.evaluation.statistics import subject_means
from dualflow.modalities import Modality
from dualflow.models.card import ModelCard
from dualflow.report.tables import Table, plain_table

ALTERNATIVES = {"nll_wrong": "another subject's", "nll_blurred": "true, blurred"}
"""Alternatives to the true source, by the column of their NLL."""
IMAGES = {
    "mae": "Point estimate",
    "mae_temperature0": "Temperature 0",
    "mae_one_sample": "One sample",
    "mae_sample_mean": "Mean of samples",
}
EXPLAINED = {"explained_level_": "", "explained_other_level_": ", another subject's source"}
"""Prefix of a column before the number of the level -> end of its heading."""
BITS = ("bits_in_mask", "bits_slack", "bits_effective_draws")
CALIBRATION = {"nats_before": "NLL before calibration", "nats_after": "NLL after calibration"}
"""Facts of a training record on its calibration, and their headings."""
ROUND_TRIPS = ("round_trip_float32", "round_trip_float64")


def check_condition(scores: pd.DataFrame, model: str, alternative: str = "nll_wrong") -> ConditionCheck | None:
    """Compare true and alternative source (a key of ALTERNATIVES) of a model; None for a model without a density."""
    return subject_check(scores[scores["model"] == model], "nll_true", alternative)


def likelihood_summary(scores: pd.DataFrame, flows: Sequence[str]) -> pd.DataFrame:
    """One row per flow: means over subjects of its likelihood scores, its condition checks, and round-trip errors.

    The checks are `share`, `low`, `high` and `gain` of `ConditionCheck`, in columns such as `nll_wrong/share`.
    Round-trip errors are maxima.
    """
    columns = [*BITS, "nll_true", *ALTERNATIVES, *IMAGES, "sample_seconds", *_levels(scores)]
    rows = []
    for name in flows:
        flow_scores = scores[scores["model"] == name]
        # Seeds and visits of one subject are not independent.
        row = subject_means(flow_scores, columns).reindex(columns=columns).mean().to_dict()
        for alternative in ALTERNATIVES:
            # A flow without a finite density keeps its row.
            check = check_condition(scores, name, alternative) or ConditionCheck(nan, nan, nan, 0, nan)
            row |= {f"{alternative}/{key}": float(getattr(check, key)) for key in ("share", "low", "high", "gain")}
        rows.append({"model": name, **row, **flow_scores[list(ROUND_TRIPS)].max().to_dict()})
    return pd.DataFrame(rows)


def bits_table(numbers: pd.DataFrame, cards: Mapping[str, ModelCard]) -> Table:
    """Accuracy of each flow's bits, from `likelihood_summary`, and what calibration changed, from the model cards."""
    frame = pd.DataFrame(
        {
            "Model": numbers["model"],
            "Bits in the mask": numbers["bits_in_mask"],
            "Slack": numbers["bits_slack"],
            "Bound without annealing": numbers["nll_true"] / log(2),
            "Effective draws": numbers["bits_effective_draws"],
        }
    )
    for key, heading in CALIBRATION.items():
        facts = pd.DataFrame([(card.name, card.training.calibration.get(key, nan)) for card in cards.values()])
        means = facts.groupby(0)[1].mean().reindex(numbers["model"])
        if means.notna().any():
            frame[heading] = means.to_numpy()
    caption = (
        "Accuracy of the bits. Slack: 2.4 times what the last doubling of the annealing steps gained, and the standard "
        "error of the draws; infinite if no annealing move was short enough for one of the scans. The bits are upper "
        "bounds; a difference decides nothing if the slack of the larger bound can explain it. The bound without "
        "annealing contains what a model does not know about its own background, so it does not compare models. "
        "Effective draws: of the background, by their weights."
    )
    if frame.columns.isin([*CALIBRATION.values()]).any():
        caption += f" NLL before and after calibration: nats per voxel of the grid, of {_calibrated_on(cards)}."
    return plain_table(frame, caption)


def _calibrated_on(cards: Mapping[str, ModelCard]) -> str:
    from dualflow.training.calibrate import MAX_PEOPLE  # torch takes a second to import

    people = "validation subjects"
    if any(card.training.calibration.get("cross_fitted") for card in cards.values()):
        people = "training subjects by cross-fitting, because there are too few validation subjects"
    return f"one scan each of at most {MAX_PEOPLE} {people}"


def _share(share: float, low: float, high: float) -> str:
    """A share with its interval, which few subjects do not have."""
    interval = "" if np.isnan([low, high]).any() else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return UNKNOWN if np.isnan(share) else f"{100 * share:.0f} %{interval}"


def source_table(numbers: pd.DataFrame) -> Table:
    """NLL of the real targets under true and alternative sources, from `likelihood_summary`."""
    rows = [
        {
            "Model": row["model"],
            "Alternative source": label,
            "NLL, true source": row["nll_true"],
            "NLL, alternative": row[alternative],
            "Difference": row[f"{alternative}/gain"],
            "True source likelier": _share(*(row[f"{alternative}/{key}"] for key in ("share", "low", "high"))),
        }
        for row in numbers.to_dict("records")
        for alternative, label in ALTERNATIVES.items()
    ]
    caption = (
        "Bounds of the NLL of the real images in nats per voxel of the mask, without annealing, and share of subjects "
        "whose image is likelier under the true source than under the alternative, with 95 % Wilson interval. "
        "Alternatives use the brain mask of the subject; the blur has an SD of 8 mm."
    )
    return plain_table(pd.DataFrame(rows), caption, digits=4)


def image_table(numbers: pd.DataFrame, row: Modality) -> Table:
    """Errors of point estimates and samples of a flow, from `likelihood_summary`."""
    frame = numbers[["model", *IMAGES, "sample_seconds"]]
    names = {"model": "Model", **IMAGES, "sample_seconds": "Seconds per sample"}
    caption = (
        f"Mean absolute error ({row.unit}) of point estimates and samples. A single sample has a larger error than the "
        "mean, because it shows one possible scan and not the expected one."
    )
    return plain_table(frame.rename(columns=names), caption, digits=4)


def explaining_flows(cards: Mapping[str, ModelCard]) -> list[str]:
    """Names of the flows whose prior has a mean that depends on the source or on coarser latents."""
    specs = {card.name: card.spec for card in cards.values()}
    return [name for name, spec in specs.items() if spec and spec.has_prior_mean]


def explained_table(numbers: pd.DataFrame, flows: Sequence[str]) -> Table:
    """Share of the latent variance of each level that the prior's mean explains, from `likelihood_summary`.

    Only the rows of `flows`, from `explaining_flows`: any other prior has no mean that could explain anything.
    """
    numbers = numbers[numbers["model"].isin(list(flows))].dropna(axis="columns", how="all")
    frame = numbers[["model", *_levels(numbers)]].rename(columns={"model": "Model"})
    for prefix, heading in EXPLAINED.items():
        frame.columns = frame.columns.str.replace(f"^{prefix}(.*)", rf"Level \1{heading}", regex=True)
    caption = (
        "Share of the variance of a scan's latents that the prior's mean explains; level 1 is the finest. The share "
        "under another subject's source reflects what all subjects have in common. Shares near zero are expected if a "
        "mean model has removed the predictable part of the image."
    )
    return plain_table(frame, caption)


def safety_table(numbers: pd.DataFrame, stress: pd.DataFrame | None, row: Modality) -> Table:
    """Round-trip errors, from `likelihood_summary`, and stress tests, from `stress_totals`."""
    frame = pd.DataFrame({"Model": numbers["model"]})
    for column, kind in zip(ROUND_TRIPS, ("float32", "float64"), strict=True):
        frame[f"Round trip, {kind}"] = [f"{error:.1e}" for error in numbers[column]]
    if stress is not None:
        totals = stress.set_index("model").loc[numbers["model"]].reset_index()
        frame["Stress samples"], frame["Non-finite voxels"] = totals["samples"], totals["nonfinite_voxels"]
        frame[f"Largest value ({row.unit})"] = totals["largest"]
    caption = (
        "Largest error of encoding and decoding a scan, and results of the stress test: samples at temperatures 0 to 1 "
        "under true and other subjects' sources."
        if stress is not None
        else "Largest error of encoding and decoding a scan. No stress samples were drawn (evaluate.stress: 0)."
    )
    return plain_table(frame, caption, digits=2)


def stress_totals(tables: pd.DataFrame) -> pd.DataFrame:
    """Number of samples and non-finite voxels, and largest finite value, per flow over its stress tables."""
    totals = {"samples": "sum", "nonfinite_voxels": "sum", "largest": "max"}
    return tables.groupby("model", sort=False).agg(totals).reset_index()


def _levels(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table if str(column).startswith(tuple(EXPLAINED))]
