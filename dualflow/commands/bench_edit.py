"""`dualflow bench edit`: effects of edits against those of the true law, on held-out people of a simulated cohort."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.commands.edit import edited_images, edited_rows
from dualflow.commands.true_law import expected_targets, people_of
from dualflow.commit import commit_text
from dualflow.config import Config
from dualflow.data.markdown import markdown_table
from dualflow.data.side_encoder import Categorical, Continuous
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.data.tsv import table_text
from dualflow.errors import CheckpointError, ConfigError, DataError
from dualflow.evaluation.metrics import correlation
from dualflow.imaging.regions import region_map
from dualflow.inference.predict import load_predictor
from dualflow.layout import Scan
from dualflow.progress import track
from dualflow.training.device import select_device, source_and_side

NAME = "edit"
"""Name of the table's files."""
EDITS: dict[str, tuple[Any, Any]] = {"age": (60.0, 80.0), "diagnosis": ("CN", "AD"), "sex": ("F", "M")}
"""Side column -> from and to."""
AFFECTED = 0.25
"""A region is affected if its true effect exceeds this share of the largest."""

Floats = NDArray[np.float64]


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
    effects: dict[str, list[tuple[Floats, Floats]]] = {column: [] for column in columns}
    changes, errors, misses = dict[str, Floats](), [], []
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
    design = encoder.encode(pairs[pairs["split"] == "train"]).numpy().astype(np.float64)
    summaries = []
    for column in columns:
        estimated, true = map(np.stack, zip(*effects[column], strict=True))
        summaries.append(
            {"edit": column, **summarise_effects(estimated, true, noise * leverage(design, changes[column]))}
        )
    table = pd.DataFrame(summaries)
    text = _markdown(table)
    commit_text(config.layout.table(NAME), table_text(table.round(5)))
    commit_text(config.layout.page(NAME), text + "\n")
    print(text)
    print(f"{len(test)} people; without a change, the measured image comes back to {max(errors):.1e}")


def _can_be_edited(column: Continuous | Categorical) -> bool:
    """Whether the true law has edits of the column, between values that the training saw."""
    values = EDITS.get(column.name)
    return values is not None and (not isinstance(column, Categorical) or set(values) <= set(column.levels))


def leverage(design: Floats, change: Floats) -> float:
    """Standard error of the effect of a `change` `[S]` in a linear regression on `design` `[N, S]` with noise of SD 1.

    Rows with unknown values are left out; an unknown value does not change.
    """
    change = np.nan_to_num(change)
    known = design[np.isfinite(design).all(axis=1)]
    centred = known - known.mean(axis=0)
    return float(np.sqrt(change @ np.linalg.pinv(centred.T @ centred, hermitian=True) @ change))


def summarise_effects(estimated: Floats, true: Floats, standard_error: Floats) -> dict[str, float]:
    """Compare effects `[N, R]` of N people and R regions.

    Args:
        estimated: effects by the model.
        true: effects by the true law.
        standard_error: `[R]`, that of an effect which a regression on the training people estimates.

    Returns:
        `slope`: estimated over true mean effect in the affected regions; `r_regions`: correlation of mean effects over
        all regions; `leak`: mean absolute estimated effect outside the affected regions over the true one inside,
        beside `leak_true` of the truth; `r_people`: correlation over people, mean over the affected regions;
        `varies`: standard deviation over people of the true effect, over its mean size, in the affected regions;
        `error`: root mean square of the standard error in the affected regions.
    """
    known = np.isfinite(estimated).all(axis=0) & np.isfinite(true).all(axis=0)
    estimated, true, standard_error = estimated[:, known], true[:, known], standard_error[known]
    mean, mean_true = estimated.mean(axis=0), true.mean(axis=0)
    inside = np.abs(mean_true) > AFFECTED * np.abs(mean_true).max()
    size = np.abs(mean_true[inside]).mean()
    people = [correlation(estimated[:, region], true[:, region]) for region in np.flatnonzero(inside)]
    return {
        "size": float(size),
        "slope": float(mean[inside] @ mean_true[inside] / (mean_true[inside] @ mean_true[inside])),
        "r_regions": correlation(mean, mean_true),
        "leak": float(np.abs(mean[~inside]).mean() / size) if (~inside).any() else 0.0,
        "leak_true": float(np.abs(mean_true[~inside]).mean() / size) if (~inside).any() else 0.0,
        "r_people": float(np.nanmean(people)) if np.isfinite(people).any() else float("nan"),
        "varies": float(true[:, inside].std(axis=0).mean() / size),
        "error": float(np.sqrt(np.square(standard_error[inside]).mean())),
        "affected": int(inside.sum()),
    }


def _markdown(table: pd.DataFrame) -> str:
    rows = [["edit", "true effect, SUVR", "standard error", "estimated / true", "r, regions", "outside / inside",
             "of the truth", "r, people", "SD over people / mean"]]  # fmt: skip
    for row in table.to_dict("records"):
        first, second = EDITS[row["edit"]]
        values = [
            row[name] for name in ("size", "error", "slope", "r_regions", "leak", "leak_true", "r_people", "varies")
        ]
        rows.append(
            [
                f"{row['edit']}, {first} to {second}",
                *(f"{value:.3f}" for value in values[:2]),
                *(f"{value:.2f}" for value in values[2:]),
            ]
        )
    return markdown_table(rows)
