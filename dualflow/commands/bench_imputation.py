"""`dualflow bench imputation`: whether statistics on imputed studies are valid, on simulated studies with known truth.

Each study draws people with replacement from the cohort, and for each of them a fresh PET from the true law. Some of
the PET is hidden, a model is trained on the rest, and the holes are filled in several ways. The population of the
studies is therefore the cohort, and the true effects are those of a regression of the expected values of its people.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import dualflow
from dualflow.commands.imputation_pool import Pool, draw_pool, people_table
from dualflow.commands.learning_data import LearningData
from dualflow.commands.train import fit_model
from dualflow.commit import commit_text, digest_of, scratch_folder, sha256
from dualflow.config import Config, public_values
from dualflow.data.dataset import Item, PairDataset
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.tsv import read_typed_table, table_text
from dualflow.errors import ConfigError
from dualflow.flows.interface import ConditionalSampler
from dualflow.imputation.formula import Formula
from dualflow.imputation.group_models import COMPLETE, MULTIPLE, RUBIN, analyse_regions
from dualflow.imputation.group_models import SINGLE as ONE_TABLE
from dualflow.imputation.region_values import RegionValues, cross_fitted_images, region_values
from dualflow.imputation.replicates import Replicates
from dualflow.imputation.study_tables import ALL, JACKKNIFE, PROPER, SINGLE, TRUE_LAW, fillings, study_replicates
from dualflow.imputation.validity import summarise_regions, summarise_validity
from dualflow.imputation.validity_text import validity_markdown
from dualflow.layout import Scan
from dualflow.manifest import read_manifest, write_manifest
from dualflow.process import keep_freed_memory
from dualflow.progress import track
from dualflow.training.closed_form import ClosedFormCache
from dualflow.training.context import TrainingContext

NAME = "imputation"
"""Name of the table's files."""
FORMULA = Formula("diagnosis + age + sex + group", {"diagnosis": "CN"})
NULL = "group"
"""A coin toss per person, which has no effect."""


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


def _null_term() -> str:
    return f"{NULL}=B"


def bench_imputation(config: Config, *, studies: int, people: int, draws: int, model: str, seed: int) -> None:
    """Simulate studies, impute and analyse each, and print and write the table of their validity.

    Raises:
        ConfigError: the study is not the embedded cohort, or the model cannot be trained.
    """
    if not config.embedded:
        raise ConfigError(f"study {config.study.name} has no known truth; bench imputation needs the embedded cohort")
    keep_freed_memory()
    rng = np.random.default_rng(seed)
    cohort = people_table(config)
    members = rng.integers(len(cohort), size=(studies, people))
    stem = f"{NAME}_{model}"
    plan = {"studies": studies, "people": people, "draws": draws, "seed": seed, "study": public_values(config)}
    plan["program"] = _program_digest()
    records = [config.layout.manifest(f"bench/{stem}/{number:04d}") for number in range(studies)]
    files = [config.layout.bench_study(stem, number) for number in range(studies)]
    tables = [_finished(*paths, plan) for paths in zip(records, files, strict=True)]
    if any(table is None for table in tables):
        counts = np.bincount(members.reshape(-1), minlength=len(cohort))
        most = max(np.bincount(member).max() for member in members)
        pool = draw_pool(config, cohort, np.maximum(counts, draws + most), seed)
        truth = _true_effects(pool)
        places = _places(members)
        for number, member in enumerate(track(members, "bench imputation")):
            if tables[number] is None:
                table = _study(config, pool, member, places[number], model, draws, [seed, number])
                tables[number] = table = table.assign(study=number).merge(truth, on=["region", "term"])
                _finish(records[number], files[number], plan, table)
    table = pd.concat(tables, ignore_index=True)
    summary, by_region = summarise_validity(table, _null_term()), summarise_regions(table, _null_term())
    text = validity_markdown(summary, by_region)
    commit_text(config.layout.table(stem), table_text(summary))
    commit_text(config.layout.table(f"{stem}_regions"), table_text(by_region))
    commit_text(config.layout.page(stem), text + "\n")
    print(text)
    print(f"{studies} studies of {people} people, {draws} draws, model {model}, {len(cohort)} people in the cohort")


def _finished(manifest: Path, path: Path, plan: dict[str, Any]) -> pd.DataFrame | None:
    """Estimates of a study of an earlier, interrupted benchmark with the same plan."""
    return None if read_manifest(manifest, config=plan) is None else read_typed_table(path)


def _program_digest() -> str:
    """Digest of dualflow's own code: numbers of another build are not mixed with this one's."""
    root = Path(dualflow.__file__).parent
    return digest_of({str(path.relative_to(root)): sha256(path) for path in sorted(root.rglob("*.py"))})


def _finish(manifest: Path, path: Path, plan: dict[str, Any], table: pd.DataFrame) -> None:
    """Write the estimates of a study, so that an interrupted benchmark goes on with the next."""
    commit_text(path, table_text(table))
    write_manifest(manifest, step="bench imputation", outputs={"estimates": path}, inputs={}, config=plan)


def _places(members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of a person's targets each member of each study has: every target is used once."""
    used, places = np.zeros(members.max() + 1, np.int64), np.zeros_like(members)
    for index, person in np.ndenumerate(members):
        places[index] = used[person]
        used[person] += 1
    return places


def _true_effects(pool: Pool) -> pd.DataFrame:
    without_null = Formula(FORMULA.text.replace(f" + {NULL}", ""), FORMULA.references)
    null = pd.DataFrame({"region": pool.regions.names, "term": _null_term(), "truth": 0.0})
    return pd.concat([pool.true_effects(without_null), null], ignore_index=True)


def _study(
    config: Config,
    pool: Pool,
    members: NDArray[np.int64],
    places: NDArray[np.int64],
    model: str,
    draws: int,
    seed: list[int],
) -> pd.DataFrame:
    """One study: estimates of every method, region and term, for each way of hiding."""
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
        for method, estimates in _estimates(values, observed, design, pool.regions.names, fills, changes):
            results.append(estimates.assign(method=method, hidden=name))
    return pd.concat(results, ignore_index=True)


def _as_number(seed: Sequence[int | str]) -> int:
    return zlib.crc32(str(list(seed)).encode())


def _estimates(
    values: Sequence[RegionValues],
    observed: NDArray[np.bool_],
    design: pd.DataFrame,
    regions: Sequence[str],
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
        result = analyse_regions(tables, known, design, subjects, regions, changes)
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
