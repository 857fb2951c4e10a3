"""`dualflow bench imputation`: whether statistics on imputed studies are valid, on simulated studies with known truth.

Each study draws people with replacement from the cohort, and for each of them a fresh PET from the true law. Some of
the PET is hidden, a model is trained on the rest, and the holes are filled in several ways. The population of the
studies is therefore the cohort, and the true effects are those of a regression of the expected values of its people.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dualflow.commands.train import LearningData, fit_model
from dualflow.commands.true_law import drawn_targets, people_of
from dualflow.commit import commit_text, digest_of, scratch_folder
from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset
from dualflow.data.markdown import markdown_table
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.data.tsv import table_text
from dualflow.errors import ConfigError
from dualflow.flows.interface import ConditionalSampler
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.imputation.formula import Formula
from dualflow.imputation.group_models import METHODS, analyse_regions
from dualflow.imputation.region_values import RegionValues, cross_fitted_images, region_values
from dualflow.imputation.study_tables import PROPER, SINGLE, fillings
from dualflow.layout import Scan
from dualflow.process import keep_freed_memory
from dualflow.progress import track
from dualflow.training.closed_form import ClosedFormCache
from dualflow.training.context import TrainingContext

NAME = "imputation"
"""Name of the table's files."""
FORMULA = Formula("diagnosis + age + sex + group", {"diagnosis": "CN"})
NULL = "group"
"""A coin toss per person, which has no effect."""
ALL, COMPLETE, TRUE_LAW = "all measured", METHODS[1], "draws of the true law"


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


@dataclass(frozen=True)
class Pool:
    """The people that studies are drawn from.

    Attributes:
        table: label and true side values, one row per person.
        items: preprocessed sources and masks, without targets.
        targets: targets of each person from the true law `[m, D, H, W]`.
        means: region means of each person's targets `[m, R]`.
        regions: the atlas.
    """

    table: pd.DataFrame
    items: list[Item]
    targets: list[NDArray[np.float16]]
    means: list[NDArray[np.float64]]
    regions: RegionMap

    def true_effects(self) -> pd.DataFrame:
        """Coefficients of a regression of the people's expected region means, one row per region and term."""
        means = np.stack([drawn.mean(axis=0) for drawn in self.means])
        without_null = Formula(FORMULA.text.replace(f" + {NULL}", ""), FORMULA.references)
        design = without_null.design(self.table)
        rows = []
        for index, region in enumerate(self.regions.names):
            known = np.isfinite(means[:, index])
            effects = np.linalg.lstsq(design.to_numpy()[known], means[known, index], rcond=None)[0]
            rows += [(region, term, effect) for term, effect in zip(design, effects, strict=True)]
            rows.append((region, _null_term(), 0.0))
        return pd.DataFrame(rows, columns=["region", "term", "truth"])

    def true_draws(
        self, members: NDArray[np.int64], used: Sequence[int], draws: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """What a perfect model would impute for N members `[M, N, R]`: targets that their study has not `used`."""
        taken: dict[int, list[int]] = {}
        for person, place in zip(members, used, strict=True):
            taken.setdefault(int(person), []).append(place)
        free = [np.delete(self.means[person], taken[int(person)], axis=0) for person in members]
        return np.stack([rng.permutation(one)[:draws] for one in free], axis=1)


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
    pool_table = _people_table(config)
    members = rng.integers(len(pool_table), size=(studies, people))
    counts = np.bincount(members.reshape(-1), minlength=len(pool_table))
    most = max(np.bincount(member).max() for member in members)
    pool = _draw_pool(config, pool_table, np.maximum(counts, draws + most), seed)
    used, results = np.zeros(len(pool_table), int), []
    for number, member in enumerate(track(members, "bench imputation")):
        first = []
        for person in member:
            first.append(int(used[person]))
            used[person] += 1
        results.append(_study(config, pool, member, first, model, draws, [seed, number]).assign(study=number))
    table = pd.concat(results, ignore_index=True).merge(pool.true_effects(), on=["region", "term"])
    summary = summarise_validity(table)
    stem = f"{NAME}_{model}"
    text = _markdown(summary)
    commit_text(config.layout.table(f"{stem}_studies"), table_text(table))
    commit_text(config.layout.table(stem), table_text(summary))
    commit_text(config.layout.page(stem), text + "\n")
    print(text)
    print(f"{studies} studies of {people} people, {draws} draws, model {model}, {len(pool_table)} people in the cohort")


def _people_table(config: Config) -> pd.DataFrame:
    usable = {Scan.parse(key).subject for key in usable_pairs(config)["scan"]}
    people = [person for label, person in people_of(config).items() if label in usable]
    rows = [(person.label, person.age, person.sex, person.diagnosis) for person in people]
    return pd.DataFrame(rows, columns=["label", "age", "sex", "diagnosis"])


def _draw_pool(config: Config, table: pd.DataFrame, counts: NDArray[np.int64], seed: int) -> Pool:
    """Draw a number of targets of each person."""
    pairs, people = usable_pairs(config), people_of(config)
    splits = [load_split(config, pairs, split, SideEncoder()) for split in sorted(set(pairs["split"]))]
    items = {Scan.parse(item["scan"]).subject: item for split in splits for item in split.items}
    regions, targets, means = region_map(config.preprocess), [], []
    for label, count in zip(track(list(table["label"]), "draw true PET"), counts, strict=True):
        item, person = items[label], people[label]
        rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
        mask = item["mask"][0].numpy()
        images = drawn_targets(config, Scan.parse(item["scan"]), mask, person, int(count), rng)
        targets.append(np.stack([image.astype(np.float16) for image in images]))
        means.append(regions.means(targets[-1].astype(np.float32), mask))
    return Pool(table, [items[label] for label in table["label"]], targets, means, regions)


def _study(
    config: Config,
    pool: Pool,
    members: NDArray[np.int64],
    places: Sequence[int],
    model: str,
    draws: int,
    seed: list[int],
) -> pd.DataFrame:
    """One study: estimates of every method, region and term, for each way of hiding."""
    rng = np.random.default_rng(seed)
    table = pool.table.iloc[members].reset_index(drop=True)
    table[NULL] = np.where(rng.permutation(len(table)) < len(table) // 2, "A", "B")
    design, results = FORMULA.design(table), []
    for name, hide in HIDING.items():
        observed = ~hide(table, rng)
        values = _model_values(config, pool, members, places, table, observed, model, draws, seed)
        true_draws = pool.true_draws(members, places, draws, rng)[:, ~observed]
        fills = {**fillings(values, observed, design, seed[-1]), TRUE_LAW: true_draws}
        for method, estimates in _estimates(values, observed, design, pool.regions.names, fills):
            results.append(estimates.assign(method=method, hidden=name))
    return pd.concat(results, ignore_index=True)


def _estimates(
    values: Sequence[RegionValues],
    observed: NDArray[np.bool_],
    design: pd.DataFrame,
    regions: Sequence[str],
    fills: Mapping[str, NDArray[np.float64]],
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the analysis of each way of completing the study."""
    measured = np.stack([one.measured for one in values])
    subjects = [str(position) for position in range(len(values))]  # a person drawn twice is two people
    columns = ["region", "term", "estimate", "se", "low", "high"]

    def analysis(tables: NDArray[np.float64], known: NDArray[np.bool_]) -> Callable[[str], pd.DataFrame]:
        result = analyse_regions(tables, known, design, subjects, regions)
        return lambda method: result.loc[result["method"] == method, columns]

    yield ALL, analysis(np.repeat(measured[None], 2, axis=0), np.ones_like(observed))(METHODS[0])
    for method, draws in fills.items():
        tables = np.repeat(measured[None], len(draws), axis=0)
        tables[:, ~observed] = draws
        rows = analysis(tables, observed)
        if method == PROPER:
            yield COMPLETE, rows(COMPLETE)
        yield method, rows(METHODS[2] if method == SINGLE else METHODS[0])


def _model_values(
    config: Config,
    pool: Pool,
    members: NDArray[np.int64],
    places: Sequence[int],
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
            seed[-1],
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
            zlib.crc32(f"{seed}{item['scan']}".encode()),
            next(held_out) if known else None,
        )
        for item, known in zip(items, observed, strict=True)
    ]


def summarise_validity(table: pd.DataFrame) -> pd.DataFrame:
    """Validity of each method, one row per way of hiding, method and kind of term (`null` or `effect`).

    `excluded` is the percentage of 95 % intervals without the truth, which for a null term is the type I error. `bias`
    is the root mean square over regions and terms of the mean error, in standard errors, without its Monte-Carlo part.
    `width` is the mean width of the intervals relative to that of complete cases, and `gain` how many more measured
    scans the variance is worth. Monte-Carlo errors `_mc` are those of means over studies.
    """
    table = table.assign(kind=np.where(table["term"] == _null_term(), "null", "effect"))
    keys = ["hidden", "study", "region", "term"]
    reference = table[table["method"] == COMPLETE].set_index(keys)[["low", "high", "se"]].add_suffix("_complete")
    table = table.join(reference, on=keys)
    table["excluded"] = 100.0 * ((table["low"] > table["truth"]) | (table["high"] < table["truth"]))
    table["width"] = (table["high"] - table["low"]) / (table["high_complete"] - table["low_complete"])
    rows = []
    for (hidden, kind, method), group in table.groupby(["hidden", "kind", "method"], sort=False):
        by_study = group.groupby("study")[["excluded", "width"]].mean()
        count = len(by_study)
        errors = (group["estimate"] - group["truth"]).groupby([group["region"], group["term"]]).agg(["mean", "var"])
        spread = (group["se"] ** 2).groupby([group["region"], group["term"]]).mean()
        # Variances of the estimates over studies, and not the claimed ones, tell what a method is worth.
        bias = ((errors["mean"] ** 2 - errors["var"] / count) / spread).mean()
        rows.append(
            {
                "hidden": hidden,
                "kind": kind,
                "method": method,
                "excluded": by_study["excluded"].mean(),
                "excluded_mc": by_study["excluded"].std(ddof=1) / np.sqrt(count),
                "bias": np.sqrt(max(bias, 0.0)),
                "variance": errors["var"].mean(),
                "width": by_study["width"].mean(),
                "width_mc": by_study["width"].std(ddof=1) / np.sqrt(count),
                "studies": count,
            }
        )
    summary = pd.DataFrame(rows)
    complete = summary[summary["method"] == COMPLETE].set_index(["hidden", "kind"])["variance"]
    reference_variance = complete.reindex(pd.MultiIndex.from_frame(summary[["hidden", "kind"]])).to_numpy()
    summary["gain"] = 100 * (reference_variance / summary["variance"] - 1)
    return summary.round(4)


def _markdown(summary: pd.DataFrame) -> str:
    texts = []
    for hidden, part in summary.groupby("hidden", sort=False):
        rows = [["method", "type I error, %", "effects missed by 95 % intervals, %", "bias, SE", "width", "gain, %"]]
        for method, group in part.groupby("method", sort=False):
            kinds = group.set_index("kind")
            null, effect = kinds.loc["null"], kinds.loc["effect"]
            rows.append(
                [
                    str(method),
                    *(f"{row['excluded']:.1f} ± {row['excluded_mc']:.1f}" for row in (null, effect)),
                    f"{effect['bias']:.2f}",
                    f"{effect['width']:.2f}",
                    f"{effect['gain']:+.0f}",
                ]
            )
        texts.append(f"PET hidden {hidden}:\n\n{markdown_table(rows)}\n")
    return "\n".join(texts)
