"""Agreement of real and synthetic region means over people, region by region.

The scores `region_r` and `region_icc` are over the regions of a person, where the average brain dominates. These tell
whether a model knows how a region differs between people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from dualflow.arrays import Floats
from dualflow.config import Config
from dualflow.evaluation.agreement import agreement
from dualflow.evaluation.metrics import correlation, intraclass_correlation
from dualflow.evaluation.statistics import MIN_CORRELATED
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.layout import Scan, training_key
from dualflow.modalities import Modality
from dualflow.report.region_means import RegionMeans, readable
from dualflow.report.study_results import read_result
from dualflow.report.tables import UNKNOWN, Table

NAME = "region_agreement"
"""Name of the table's file."""
META_REGION, REGION = "meta-region", "region"
COLUMNS = ("kind", "region", "people", "bias", "low", "high", "r", "icc")
SHOWN = 12
"""Number of regions in the report, beside the meta-regions."""


def study_agreement(config: Config) -> pd.DataFrame:
    """Agreement of the main model of a study, from `region_agreement`.

    Raises:
        DataError: the table of a training is missing.
    """
    stems = [training_key(name, seed) for name, seed in config.trainings if name == config.model.preset]
    tables = [read_result(config.layout.table(f"regions_{stem}")) for stem in stems]
    return region_agreement([RegionMeans.from_table(table) for table in tables], region_map(config.preprocess))


def region_agreement(seeds: Sequence[RegionMeans], atlas: RegionMap) -> pd.DataFrame:
    """Agreement over people of each meta-region and region; visits of a person are averaged first.

    Args:
        seeds: region means by each seed of a model.
        atlas: the regions on the model grid.

    Returns:
        One row per meta-region and region, columns COLUMNS: bias and limits of agreement in the target's unit, Pearson
        r and ICC(A,1), each the mean over seeds. r and ICC are NaN with fewer than MIN_CORRELATED people.
    """
    rows = pd.concat([pd.DataFrame(_of_seed(means, atlas), columns=list(COLUMNS)) for means in seeds])
    # Not of the mean of the seeds' predictions, which correlates better than that of a single training.
    return rows.groupby(["kind", "region"], sort=False).mean().astype({"people": int}).reset_index()


def _of_seed(means: RegionMeans, atlas: RegionMap) -> Iterator[tuple[str, str, int, float, float, float, float, float]]:
    subjects = [Scan.parse(key).subject for key in means.scans]
    for name, pair in means.meta_regions(atlas).items():
        yield META_REGION, name, *_agreement(np.stack(pair, axis=1), subjects)
    for name, real, synthetic in zip(means.regions, means.real.T, means.synthetic.T, strict=True):
        yield REGION, name, *_agreement(np.stack([real, synthetic], axis=1), subjects)


def _agreement(values: Floats, subjects: Sequence[str]) -> tuple[int, float, float, float, float, float]:
    """People, bias, limits, r and ICC of real and synthetic values `[N, 2]` of scans of `subjects`."""
    visits = pd.DataFrame(values).assign(subject=subjects).dropna()
    people = visits.groupby("subject").mean().to_numpy(np.float64)
    limits = agreement(people[:, 0], people[:, 1])
    r = icc = float("nan")
    if len(people) >= MIN_CORRELATED:
        r, icc = correlation(people[:, 0], people[:, 1]), intraclass_correlation(people)
    return len(people), limits.bias, limits.low, limits.high, r, icc


def agreement_table(rows: pd.DataFrame, row: Modality, model: str) -> Table:
    """The meta-regions of `region_agreement`, and the SHOWN regions with the largest bias, the largest first."""
    groups, regions = (rows[rows["kind"] == kind] for kind in (META_REGION, REGION))
    worst = regions.sort_values("bias", key=lambda bias: -bias.abs(), kind="stable").head(SHOWN)
    names = [*groups["region"], *map(readable, worst["region"])]
    unit = row.unit
    cells = [
        {
            "Region": name,
            "People": str(entry["people"]),
            f"Bias ({unit})": _number(entry["bias"], "+z.3f"),
            f"Limits of agreement ({unit})": " to ".join(_number(entry[end], "+z.3f") for end in ("low", "high")),
            "r over people": _number(entry["r"], "z.2f"),
            "ICC over people": _number(entry["icc"], "z.2f"),
        }
        for name, entry in zip(names, pd.concat([groups, worst]).to_dict("records"), strict=True)
    ]
    caption = (
        f"Agreement of {model} over people, visits averaged first: meta-regions, and the {len(worst)} of "
        f"{len(regions)} regions with the largest bias; metrics/{NAME}.tsv has all. Bias: synthetic minus real. "
        "Limits: bias ± 1.96 SD over people."
    )
    table = pd.DataFrame(cells)
    if rows["r"].notna().any():
        caption += (
            " r and ICC (absolute agreement) show whether the model knows how people differ in a region; region r and "
            "region ICC, over the regions of a person, do not."
        )
    else:
        table = table.drop(columns=["r over people", "ICC over people"])
    if rows["people"].min() < MIN_CORRELATED:
        caption += f" Fewer than {MIN_CORRELATED} people have no r and no ICC."
    return Table(caption, table)


def _number(value: float, form: str) -> str:
    return UNKNOWN if np.isnan(value) else f"{value:{form}}"
