"""One simulated study of `dualflow bench imputation`: hide PET, train a model on the rest, apply each method."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles
from dualflow.commands.imputation_pool import Pool
from dualflow.commands.learning_data import LearningData
from dualflow.commands.train import fit_model
from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset
from dualflow.data.side_encoder import SideEncoder
from dualflow.digests import digest_of
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

Derive = Callable[[Doubles], tuple[Doubles, Sequence[str]]]
"""From region values `[M, N, R]` to those of all outcomes, and their names."""
FORMULA = Formula("diagnosis + age + sex + group", {"diagnosis": "CN"})
NULL = "group"
"""A coin toss per person, which has no effect."""
NULL_TERM = f"{NULL}=B"


def hidden_at_random(people: pd.DataFrame, rng: np.random.Generator) -> Bools:
    """Hide the PET of half of the people."""
    return rng.permutation(len(people)) < len(people) // 2


def hidden_by_side(people: pd.DataFrame, rng: np.random.Generator) -> Bools:
    """Hide the PET of more of the patients and of the old: about half of the patients, a quarter of the others."""
    age = (people["age"] - people["age"].mean()) / people["age"].std()
    logit = np.where(people["diagnosis"] == "CN", -1.1, 0.0) + 0.4 * age
    return np.asarray(rng.random(len(people)) < 1 / (1 + np.exp(-logit)))


class Hiding(NamedTuple):
    """A way of hiding PET: its name in tables, and the function that tells whose PET is hidden."""

    name: str
    hide: Callable[[pd.DataFrame, np.random.Generator], Bools]


HIDING: Mapping[str, Hiding] = {
    "random": Hiding("half at random", hidden_at_random),
    "diagnosis": Hiding("by diagnosis and age", hidden_by_side),
}
"""Which PET is missing."""


@dataclass(frozen=True)
class SimulatedStudy:
    """People drawn from a pool, with some of their PET hidden. All models get the same study.

    Attributes:
        pool: the people to draw from.
        items: scans of the N people with their targets, also the hidden ones.
        table: side information, one row per person, with the coin toss.
        observed: whose PET is not hidden `[N]`.
        true_draws: draws of the hidden PET from the true law `[M, Q, R]`.
        members: positions of the people in the pool `[N]`.
        hidden: name of the way of hiding.
        seed: of the trainings and draws.
    """

    pool: Pool
    items: list[Item]
    table: pd.DataFrame
    observed: Bools
    true_draws: Doubles
    members: NDArray[np.int64]
    hidden: str
    seed: Sequence[int]

    @classmethod
    def make(
        cls,
        pool: Pool,
        members: NDArray[np.int64],
        places: NDArray[np.int64],
        way: str,
        draws: int,
        seed: Sequence[int],
    ) -> SimulatedStudy:
        """Toss the coins, and hide PET.

        Args:
            pool: the people to draw from.
            members: positions of the study's people in the pool `[N]`.
            places: which of a member's targets is measured `[N]`.
            way: row of HIDING. Another way has the same people, coins and measured PET.
            draws: number of completed tables M.
            seed: of the study.
        """
        table = pool.table.iloc[members].reset_index(drop=True)
        coins = np.random.default_rng(seed).permutation(len(table)) < len(table) // 2
        table[NULL] = np.where(coins, "A", "B")
        rng = np.random.default_rng([*seed, zlib.crc32(way.encode())])
        observed = ~HIDING[way].hide(table, rng)
        true_draws = pool.true_draws(members, places, draws, rng)[:, ~observed]
        items: list[Item] = []
        for row, (person, place) in enumerate(zip(members, places, strict=True)):
            target = torch.from_numpy(pool.targets[person][place].astype(np.float32))[None]
            scan = Scan(pool.table["label"].iloc[person], f"{row:04d}").key
            items.append({**pool.items[person], "target": target, "scan": scan})
        return cls(pool, items, table, observed, true_draws, members, HIDING[way].name, list(seed))

    def estimates(self, config: Config, model: str, folder: Path) -> pd.DataFrame:
        """Train a model on the observed PET; return the estimates of every method, outcome and term.

        Args:
            config: of the study.
            model: name of the model.
            folder: for its files, and for closed-form fits, which models with the same mean share.
        """
        values, seed = self._values(config, model, folder), _as_number(self.seed)
        design = FORMULA.design(self.table)
        fills = {**fillings(values, self.observed, design, seed), TRUE_LAW: self.true_draws}
        changes = study_replicates(values, self.observed, design, seed)
        derive = partial(self.pool.outcomes, members=self.members)
        parts = _estimates(values, self.observed, design, derive, fills, changes)
        table = pd.concat([part.assign(method=method) for method, part in parts], ignore_index=True)
        return table.assign(hidden=self.hidden)

    def _values(self, config: Config, model: str, folder: Path) -> list[RegionValues]:
        """Train a model on the observed scans; return measured values, predictions and noise of all scans."""
        encoder = SideEncoder.fit(self.table[self.observed], FORMULA.variables)
        sides = encoder.encode(self.table)
        items: list[Item] = [{**item, "side": side} for item, side in zip(self.items, sides, strict=True)]
        training = PairDataset([item for item, known in zip(items, self.observed, strict=True) if known])
        digests = {item["scan"]: digest_of([*map(int, self.seed), item["scan"]]) for item in items}
        data = LearningData(self.table, encoder, training, PairDataset([]), digests)
        cache, regions = ClosedFormCache(folder), self.pool.regions
        context = TrainingContext(
            config.train,
            folder / model,
            _as_number(self.seed),
            regions=torch.from_numpy(regions.labels),
            closed_form=cache,
        )
        trained = fit_model(config, model, data, context).model
        if not isinstance(trained, ConditionalSampler):
            raise ConfigError(f"model {model} has no distribution; choose a flow, or a baseline with a spread")
        images = cross_fitted_images(trained, data.filled[0], cache)
        if images is None:
            raise ConfigError(
                f"the predictions of {model} are not cross-fitted; choose a model with a closed-form mean"
            )
        held_out, draws = iter(images), len(self.true_draws)
        return [
            region_values(
                trained,
                item,
                regions,
                draws,
                _as_number([*self.seed, item["scan"]]),
                next(held_out) if known else None,
            )
            for item, known in zip(items, self.observed, strict=True)
        ]


def _as_number(seed: Sequence[int | str]) -> int:
    return zlib.crc32(str(list(seed)).encode())


def _estimates(
    values: Sequence[RegionValues],
    observed: Bools,
    design: pd.DataFrame,
    derive: Derive,
    fills: Mapping[str, Doubles],
    replicates: Replicates | None,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the analysis of each way of completing the study; `replicates` are those of the proper draws."""
    measured = np.stack([one.measured for one in values])
    subjects = [str(position) for position in range(len(values))]  # a person drawn twice is two people
    columns = ["region", "term", "estimate", "se", "low", "high"]

    def analysis(tables: Doubles, known: Bools, changes: Replicates | None = None) -> Callable[[str], pd.DataFrame]:
        outcomes, names = derive(tables)
        if changes is not None:
            changes = changes.outcomes(tables, lambda values: derive(values)[0])
        derived = len(names) - tables.shape[-1]
        result = analyse_regions(outcomes, known, design, subjects, names, changes, derived=derived)
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
