"""The people whom the simulated studies of `dualflow bench imputation` draw, with targets from the true law."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.commands.true_law import drawn_targets, people_of
from dualflow.config import Config
from dualflow.data.dataset import Item
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.imaging.meta_regions import meta_region_weights
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.imputation.formula import Formula
from dualflow.imputation.joint_outcomes import add_joint_outcomes
from dualflow.layout import Scan
from dualflow.progress import track


@dataclass(frozen=True)
class Pool:
    """The people that studies are drawn from.

    Attributes:
        table: label and true side values, one row per person.
        items: preprocessed sources and masks, without targets.
        targets: targets of each person from the true law `[m, D, H, W]`.
        means: region means of each person's targets `[m, R]`.
        weights: weights of the meta-regions in each person's mask `[P, G, R]`.
        regions: the atlas.
    """

    table: pd.DataFrame
    items: list[Item]
    targets: list[NDArray[np.float16]]
    means: list[NDArray[np.float64]]
    weights: NDArray[np.float64]
    regions: RegionMap

    def outcomes(
        self, values: NDArray[np.float64], members: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], tuple[str, ...]]:
        """Append the joint outcomes to region values `[M, N, R]` of N members; return them and their names."""
        return add_joint_outcomes(values, self.regions.names, self.weights[members])

    def true_effects(self, formula: Formula) -> pd.DataFrame:
        """Coefficients of a regression of the people's expected outcomes, one row per outcome and term."""
        drawn = [self.outcomes(values[:, None], np.array([person])) for person, values in enumerate(self.means)]
        means, names = np.stack([values[:, 0].mean(axis=0) for values, _ in drawn]), drawn[0][1]
        design, rows = formula.design(self.table), []
        for index, region in enumerate(names):
            known = np.isfinite(means[:, index])
            effects = np.linalg.lstsq(design.to_numpy()[known], means[known, index], rcond=None)[0]
            rows += [(region, term, effect) for term, effect in zip(design, effects, strict=True)]
        return pd.DataFrame(rows, columns=["region", "term", "truth"])

    def true_draws(
        self, members: NDArray[np.int64], used: NDArray[np.int64], draws: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """What a perfect model would impute for N members `[M, N, R]`: targets that their study has not `used`."""
        taken: dict[int, list[int]] = {}
        for person, place in zip(members, used, strict=True):
            taken.setdefault(int(person), []).append(int(place))
        free = [np.delete(self.means[person], taken[int(person)], axis=0) for person in members]
        return np.stack([rng.permutation(one)[:draws] for one in free], axis=1)


def people_table(config: Config) -> pd.DataFrame:
    """Label, age, sex and diagnosis of the simulated people with a usable pair of scans."""
    usable = {Scan.parse(key).subject for key in usable_pairs(config)["scan"]}
    people = [person for label, person in people_of(config).items() if label in usable]
    rows = [(person.label, person.age, person.sex, person.diagnosis) for person in people]
    return pd.DataFrame(rows, columns=["label", "age", "sex", "diagnosis"])


def draw_pool(config: Config, table: pd.DataFrame, counts: NDArray[np.int64], seed: int) -> Pool:
    """Draw `counts` targets of each person of a table from the true law."""
    pairs, people = usable_pairs(config), people_of(config)
    splits = [load_split(config, pairs, split, SideEncoder()) for split in sorted(set(pairs["split"]))]
    items = {Scan.parse(item["scan"]).subject: item for split in splits for item in split.items}
    regions, targets, means, weights = region_map(config.preprocess), [], [], []
    for label, count in zip(track(list(table["label"]), "draw true PET"), counts, strict=True):
        item, person = items[label], people[label]
        rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
        mask = item["mask"][0].numpy()
        images = drawn_targets(config, Scan.parse(item["scan"]), mask, person, int(count), rng)
        targets.append(np.stack([image.astype(np.float16) for image in images]))
        means.append(regions.means(targets[-1].astype(np.float32), mask))
        weights.append(meta_region_weights(regions, mask)[1])
    return Pool(table, [items[label] for label in table["label"]], targets, means, np.stack(weights), regions)
