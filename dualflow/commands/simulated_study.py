"""One simulated study of `dualflow bench imputation`: hide PET, train a model on the rest, apply each method."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dualflow.commands.imputation_pool import Pool
from dualflow.commands.learning_data import LearningData
from dualflow.commands.train import fit_model
from dualflow.commit import digest_of, scratch_folder
from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import ConfigError
from dualflow.flows.interface import ConditionalSampler
from dualflow.imputation.formula import Formula
from dualflow.imputation.group_models import COMPLETE, MULTIPLE, RUBIN, analyse_regions
from dualflow.imputation.group_models import SINGLE as ONE_TABLE
from dualflow.imputation.region_values import RegionValues, cross_fitted_images, region_values
from dualflow.imputation.replicates import Replicates
from dualflow.imputation.study_tables import ALL, JACKKNIFE, PROPER, SINGLE, TRUE_LAW, fillings, study_replicates
from dualflow.layout import Scan
from dualflow.training.closed_form import ClosedFormCache
from dualflow.training.context import TrainingContext

Floats = NDArray[np.float64]
Derive = Callable[[Floats], tuple[Floats, Sequence[str]]]
"""From region values `[M, N, R]` to those of all outcomes, and their names."""
FORMULA = Formula("diagnosis + age + sex + group", {"diagnosis": "CN"})
NULL = "group"
"""A coin toss per person, which has no effect."""
NULL_TERM = f"{NULL}=B"


def hidden_at_random(people: pd.DataFrame, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Hide the PET of half of the people."""
    return rng.permutation(len(people)) < len(people) // 2


def hidden_by_side(people: pd.DataFrame, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Hide the PET of more of the patients and of the old: about half of the patients, a quarter of the others."""
    age = (people["age"] - people["age"].mean()) / people["age"].std()
    logit = np.where(people["diagnosis"] == "CN", -1.1, 0.0) + 0.4 * age
    return np.asarray(rng.random(len(people)) < 1 / (1 + np.exp(-logit)))


HIDING: Mapping[str, Callable[[pd.DataFrame, np.random.Generator], NDArray[np.bool_]]] = {
    "half at random": hidden_at_random,
    "by diagnosis and age": hidden_by_side,
}
"""Which PET is missing."""


def study_estimates(
    config: Config,
    pool: Pool,
    members: NDArray[np.int64],
    places: NDArray[np.int64],
    model: str,
    draws: int,
    seed: list[int],
) -> pd.DataFrame:
    """Return the estimates of every method, outcome and term of one study, for each way of hiding.

    Args:
        config: of the study.
        pool: the people to draw from.
        members: positions of the study's people in the pool `[N]`.
        places: which of a member's targets is measured `[N]`.
        model: name of the model that is trained.
        draws: number of completed tables.
        seed: of the study.
    """
    rng, draw_seed = np.random.default_rng(seed), _as_number(seed)
    table = pool.table.iloc[members].reset_index(drop=True)
    table[NULL] = np.where(rng.permutation(len(table)) < len(table) // 2, "A", "B")
    design, results = FORMULA.design(table), []
    for name, hide in HIDING.items():
        observed = ~hide(table, rng)
        values = _model_values(config, pool, members, places, table, observed, model, draws, seed)
        true_draws = pool.true_draws(members, places, draws, rng)[:, ~observed]
        fills = {**fillings(values, observed, design, draw_seed), TRUE_LAW: true_draws}
        changes = study_replicates(values, observed, design, draw_seed)
        derive = partial(pool.outcomes, members=members)
        for method, estimates in _estimates(values, observed, design, derive, fills, changes):
            results.append(estimates.assign(method=method, hidden=name))
    return pd.concat(results, ignore_index=True)


def _as_number(seed: Sequence[int | str]) -> int:
    return zlib.crc32(str(list(seed)).encode())


def _estimates(
    values: Sequence[RegionValues],
    observed: NDArray[np.bool_],
    design: pd.DataFrame,
    derive: Derive,
    fills: Mapping[str, NDArray[np.float64]],
    replicates: Replicates | None,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the analysis of each way of completing the study; `replicates` are those of the proper draws."""
    measured = np.stack([one.measured for one in values])
    subjects = [str(position) for position in range(len(values))]  # a person drawn twice is two people
    columns = ["region", "term", "estimate", "se", "low", "high"]

    def analysis(
        tables: NDArray[np.float64], known: NDArray[np.bool_], changes: Replicates | None = None
    ) -> Callable[[str], pd.DataFrame]:
        outcomes, names = derive(tables)
        if changes is not None:
            changes = changes.outcomes(tables, lambda values: derive(values)[0])
        result = analyse_regions(outcomes, known, design, subjects, names, changes)
        return lambda method: result.loc[result["method"] == method, columns]

    yield ALL, analysis(np.repeat(measured[None], 2, axis=0), np.ones_like(observed))(MULTIPLE)
    for method, draws in fills.items():
        tables = np.repeat(measured[None], len(draws), axis=0)
        tables[:, ~observed] = draws
        if method == PROPER:
            rows = analysis(tables, observed, replicates)
            yield COMPLETE, rows(COMPLETE)
            yield JACKKNIFE, rows(MULTIPLE)
            # Without replicates, `multiple` is by Rubin's rules.
            yield PROPER, rows(MULTIPLE if replicates is None else RUBIN)
        else:
            yield method, analysis(tables, observed)(ONE_TABLE if method == SINGLE else MULTIPLE)


def _model_values(
    config: Config,
    pool: Pool,
    members: NDArray[np.int64],
    places: NDArray[np.int64],
    table: pd.DataFrame,
    observed: NDArray[np.bool_],
    model: str,
    draws: int,
    seed: list[int],
) -> list[RegionValues]:
    """Train a model on the observed scans; return measured values, predictions and noise of all scans."""
    encoder = SideEncoder.fit(table[observed], FORMULA.variables)
    items: list[Item] = []
    for row, (person, place, side) in enumerate(zip(members, places, encoder.encode(table), strict=True)):
        target = torch.from_numpy(pool.targets[person][place].astype(np.float32))[None]
        label = pool.table["label"].iloc[person]
        items.append({**pool.items[person], "target": target, "side": side, "scan": Scan(label, f"{row:04d}").key})
    training = PairDataset([item for item, known in zip(items, observed, strict=True) if known])
    digests = {item["scan"]: digest_of([*map(int, seed), item["scan"]]) for item in items}
    data = LearningData(table, encoder, training, PairDataset([]), digests)
    with scratch_folder() as folder:
        cache = ClosedFormCache(folder)
        context = TrainingContext(
            config.train,
            folder / "model",
            _as_number(seed),
            regions=torch.from_numpy(pool.regions.labels),
            closed_form=cache,
        )
        trained = fit_model(config, model, data, context).model
        if not isinstance(trained, ConditionalSampler):
            raise ConfigError(f"model {model} has no distribution; choose a flow, or a baseline with a spread")
        images = cross_fitted_images(trained, training, cache)
    if images is None:
        raise ConfigError(f"the predictions of {model} are not cross-fitted; choose a model with a closed-form mean")
    held_out = iter(images)
    return [
        region_values(
            trained,
            item,
            pool.regions,
            draws,
            _as_number([*seed, item["scan"]]),
            next(held_out) if known else None,
        )
        for item, known in zip(items, observed, strict=True)
    ]
