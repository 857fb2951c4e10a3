"""`dualflow bench edit`: effects of edits against those of the true law, on held-out people of a simulated cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from dualflow.arrays import Doubles
from dualflow.cohort import Person
from dualflow.commands.edit import edited_images, edited_rows
from dualflow.commands.true_law import expected_targets, people_of
from dualflow.commit import commit_text
from dualflow.config import Config
from dualflow.data.dataset import PairDataset
from dualflow.data.markdown import markdown_table
from dualflow.data.side_encoder import Categorical, Continuous
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.data.tsv import table_text
from dualflow.errors import CheckpointError, ConfigError, DataError
from dualflow.evaluation.metrics import correlation
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.inference.predict import load_predictor
from dualflow.layout import Scan
from dualflow.progress import track
from dualflow.training.device import select_device, source_and_side

NAME = "edit"
"""Name of the table's files."""
EDITS: dict[str, tuple[Any, Any]] = {"age": (60.0, 80.0), "diagnosis": ("CN", "AD"), "sex": ("F", "M")}
"""Side column -> from and to."""
COLUMNS = {
    "size": "true effect, SUVR", "error": "standard error", "slope": "estimated / true", "marginal": "marginal / true",
    "r_regions": "r, regions", "leak": "outside / inside", "leak_true": "of the truth",
    "leak_beyond": "beyond the truth", "r_people": "r, people", "varies": "SD over people / mean",
}  # fmt: skip
"""Figures of `summarise_effects` and their headings."""
AFFECTED = 0.25
"""A region is affected if its true effect exceeds this share of the largest."""


def bench_edit(config: Config) -> None:
    """Edit the held-out people, and print and write the table of the effects.

    Raises:
        ConfigError: the study is not the embedded cohort.
        CheckpointError: the main model is not a flow.
        DataError: there are no held-out people with a measured target.
    """
    if not config.embedded:
        raise ConfigError(f"study {config.study.name} has no known truth; bench edit needs the embedded cohort")
    predictor = load_predictor(
        config.layout.model(config.model.preset, config.train.seeds[0]), select_device(config.train.device)
    )
    if predictor.flow is None:
        raise CheckpointError(f"{predictor.card.label} is not a flow; choose a flow as the main model")
    encoder, people, regions = predictor.card.side, people_of(config), region_map(config.preprocess)
    pairs = usable_pairs(config)
    test = load_split(config, pairs, "test", encoder)
    columns = [column.name for column in encoder.columns if _can_be_edited(column)]
    effects: dict[str, list[tuple[Doubles, Doubles]]] = {column: [] for column in columns}
    changes, errors, misses = dict[str, Doubles](), [], []
    for item in track(test.items, "bench edit"):
        scan, mask = Scan.parse(item["scan"]), item["mask"][0].numpy()
        row, person = pairs[pairs["scan"] == item["scan"]], people[scan.subject]
        persons = [replace(person, **{column: value}) for column in columns for value in EDITS[column]]
        truths = list(expected_targets(config, scan, mask, persons))
        for column, before, after in zip(columns, truths[::2], truths[1::2], strict=True):
            rows = edited_rows(row, encoder, column, [str(value) for value in EDITS[column]])
            sides = encoder.encode(rows)
            images, error = edited_images(predictor.flow, item, sides)
            estimated, true = (regions.means(change, mask) for change in (images[1] - images[0], after - before))
            effects[column].append((estimated, true))
            changes[column] = (sides[1] - sides[0]).numpy().astype(np.float64)
            errors.append(error)
        estimate = predictor.flow.point_estimate(*source_and_side(item, predictor.flow))[0, 0].float().cpu()
        misses.append(regions.means((estimate - item["target"][0]).numpy(), mask))
    if not errors:
        raise DataError("no held-out people with a measured target, or no side column that can be edited")
    noise = np.sqrt(np.square(np.stack(misses)).mean(axis=0))
    training = load_split(config, pairs, "train", encoder)
    design = torch.stack([item["side"] for item in training.items]).numpy().astype(np.float64)
    expected = _expected_regions(config, training, people, regions)
    summaries = []
    for column in columns:
        estimated, true = map(np.stack, zip(*effects[column], strict=True))
        marginal = marginal_effect(design, expected, changes[column])
        summary = summarise_effects(estimated, true, noise * leverage(design, changes[column]), marginal)
        summaries.append({"edit": column, **summary, "round_trip": max(errors)})
    table = pd.DataFrame(summaries)
    text = _markdown(table)
    # The error without a change is one of rounding.
    commit_text(config.layout.table(NAME), table_text(table.round(dict.fromkeys(table.columns.drop("round_trip"), 5))))
    commit_text(config.layout.page(NAME), text + "\n")
    print(text)
    print(f"{len(test)} people; without a change, the measured image comes back to {max(errors):.1e}")


def _expected_regions(
    config: Config, dataset: PairDataset, people: Mapping[str, Person], regions: RegionMap
) -> Doubles:
    """Region means of the expected target of each scan's person as they are, `[N, R]`."""
    means = []
    for item in track(dataset.items, "expected PET of the training people"):
        scan, mask = Scan.parse(item["scan"]), item["mask"][0].numpy()
        [target] = expected_targets(config, scan, mask, [people[scan.subject]])
        means.append(regions.means(target, mask))
    return np.stack(means)


def _can_be_edited(column: Continuous | Categorical) -> bool:
    """Whether the true law has edits of the column, between values that the training saw."""
    values = EDITS.get(column.name)
    return values is not None and (not isinstance(column, Categorical) or set(values) <= set(column.levels))


def leverage(design: Doubles, change: Doubles) -> float:
    """Standard error of the effect of a `change` `[S]` in a linear regression on `design` `[N, S]` with noise of SD 1.

    Rows with unknown values are left out; an unknown value does not change.
    """
    change = np.nan_to_num(change)
    known = design[np.isfinite(design).all(axis=1)]
    centred = known - known.mean(axis=0)
    return float(np.sqrt(change @ np.linalg.pinv(centred.T @ centred, hermitian=True) @ change))


def marginal_effect(design: Doubles, expected: Doubles, change: Doubles) -> Doubles:
    """Effect `[R]` of a `change` `[S]` that side information alone explains.

    It is that of a regression of expected region means `[N, R]` on `design` `[N, S]`. It contains what the value
    changes through the anatomy, such as atrophy, which a true effect on one anatomy does not. Rows with unknown values
    are left out; an unknown value does not change.
    """
    known = np.isfinite(design).all(axis=1)
    centred, means = design[known] - design[known].mean(axis=0), expected[known] - expected[known].mean(axis=0)
    return np.asarray(np.nan_to_num(change) @ np.linalg.pinv(centred) @ means)


def summarise_effects(
    estimated: Doubles, true: Doubles, standard_error: Doubles, marginal: Doubles
) -> dict[str, float]:
    """Compare effects `[N, R]` of N people and R regions.

    Args:
        estimated: effects by the model.
        true: effects by the true law.
        standard_error: `[R]`, that of an effect which a regression on the training people estimates.
        marginal: effects that side information alone explains `[R]`.

    Returns:
        `slope`: estimated over true mean effect in the affected regions, beside `marginal` of side information alone;
        `r_regions`: correlation of mean effects over all regions; `leak`: mean absolute estimated effect outside the
        affected regions over the true one inside, beside `leak_true` of the truth, and `leak_beyond` of the difference
        of both; `r_people`: correlation over people, mean over the affected regions;
        `varies`: standard deviation over people of the true effect, over its mean size, in the affected regions;
        `error`: root mean square of the standard error in the affected regions.
    """
    known = np.isfinite(estimated).all(axis=0) & np.isfinite(true).all(axis=0) & np.isfinite(marginal)
    estimated, true, standard_error = estimated[:, known], true[:, known], standard_error[known]
    mean, mean_true, marginal = estimated.mean(axis=0), true.mean(axis=0), marginal[known]
    inside = np.abs(mean_true) > AFFECTED * np.abs(mean_true).max()
    size = np.abs(mean_true[inside]).mean()
    outside = [np.abs(values[~inside]) for values in (mean, mean_true, mean - mean_true)]
    leaks = [float(values.mean() / size) if len(values) else 0.0 for values in outside]
    people = [correlation(estimated[:, region], true[:, region]) for region in np.flatnonzero(inside)]
    return {
        "size": float(size),
        "slope": _slope(mean[inside], mean_true[inside]),
        "marginal": _slope(marginal[inside], mean_true[inside]),
        "r_regions": correlation(mean, mean_true),
        "leak": leaks[0],
        "leak_true": leaks[1],
        "leak_beyond": leaks[2],
        "r_people": float(np.nanmean(people)) if np.isfinite(people).any() else float("nan"),
        "varies": float(true[:, inside].std(axis=0).mean() / size),
        "error": float(np.sqrt(np.square(standard_error[inside]).mean())),
        "affected": int(inside.sum()),
    }


def _slope(effects: Doubles, true: Doubles) -> float:
    """Effects over true effects `[R]`, by least squares."""
    return float(effects @ true / (true @ true))


def _markdown(table: pd.DataFrame) -> str:
    rows = [["edit", *COLUMNS.values(), "zero edit, SUVR"]]
    for row in table.to_dict("records"):
        first, second = EDITS[row["edit"]]
        cells = [f"{row[name]:.{3 if name in ('size', 'error') else 2}f}" for name in COLUMNS]
        rows.append([f"{row['edit']}, {first} to {second}", *cells, f"{row['round_trip']:.0e}"])
    return markdown_table(rows)
