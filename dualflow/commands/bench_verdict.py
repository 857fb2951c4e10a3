"""`dualflow bench verdict`: which corruptions of held-out scans are refused or flagged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dualflow import cohort
from dualflow.commands.make_cohort import subjects_of
from dualflow.commit import commit_text
from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset
from dualflow.data.markdown import markdown_table
from dualflow.data.strata import first_scans
from dualflow.data.study_pairs import learning_pairs, load_split
from dualflow.data.tsv import table_text
from dualflow.errors import DataError
from dualflow.evaluation.corruptions import CORRUPTIONS, GridScan, corrupt
from dualflow.inference.convert import scan_seed
from dualflow.inference.training_reference import fit_typicality
from dualflow.inference.typicality import RATE, Score, Typicality
from dualflow.layout import Scan
from dualflow.progress import track

NAME = "verdict"
"""Name of the table's files."""
NEAR_MM = 15.0
"""A lesion is located if the map's peak lies within this distance of its centre."""
CONFIDENCE = 0.95
NATURAL = {False: "clean, without lesions", True: "clean, with lesions"}
"""Rows of the clean scans of a simulated cohort, whose lesions are known."""
SHARES = ("refused", "flagged")
COLUMNS = (
    "corruption", "kind", "n", "refused", "refused_low", "refused_high", "flagged", "flagged_low", "flagged_high",
    "located",
)  # fmt: skip


def bench_verdict(config: Config) -> None:
    """Fit the verdict on the training scans, score a corrupted scan of each held-out person, and write the table.

    Raises:
        DataError: there are too few training scans, or no held-out scans.
    """
    pairs, encoder, training, validation = learning_pairs(config)
    held_out = first_visits(PairDataset([*validation.items, *load_split(config, pairs, "test", encoder).items]))
    if not len(held_out):
        raise DataError("no validation or test scans to score; give split.validation or split.test a share")
    started = time.process_time()
    typicality = fit_typicality(training, config.preprocess.spacing_mm)
    fit_seconds = time.process_time() - started
    lesions = natural_lesions(config)
    rows, seconds = list[dict[str, Any]](), list[float]()
    for item in track(held_out.items, "bench verdict"):
        scan = Scan.parse(item["scan"])
        rows += corrupted_scores(typicality, item, config, lesions.get(scan.subject), seconds)
    table = summary(pd.DataFrame(rows))
    text = _markdown(table)
    commit_text(config.layout.table(NAME), table_text(table.round(1)))
    commit_text(config.layout.page(NAME), text + "\n")
    print(text)
    print(
        f"{len(training)} training and {len(held_out)} held-out scans, one of each person; share of typical "
        f"scans that are refused: {typicality.rate:.1%} expected ({RATE:.0%} asked for)"
    )
    print(f"CPU seconds: {fit_seconds:.1f} for the fit, {np.mean(seconds):.3f} per scan")


def first_visits(dataset: PairDataset) -> PairDataset:
    """The first visit of each subject: intervals of shares count people, and visits of one are alike."""
    scans = pd.DataFrame({"scan": dataset.scans, "subject": dataset.subjects})
    return dataset.subset(list(first_scans(scans).index))


def natural_lesions(config: Config) -> dict[str, bool]:
    """Whether each subject of a simulated cohort has lesions; empty for a dataset, or a law without lesions."""
    people = subjects_of(config) if config.embedded else []
    lesions = {person.label: bool(cohort.LAWS[person.law].lesions(person)) for person in people}
    return lesions if any(lesions.values()) else {}


def corrupted_scores(
    typicality: Typicality, item: Item, config: Config, has_lesion: bool | None, seconds: list[float]
) -> Iterator[dict[str, Any]]:
    """Score a scan under each corruption; appends the CPU seconds of each score.

    Lesions are not implanted in people with lesions. `has_lesion` is None where that is unknown.
    """
    source, mask = _arrays(item)
    target = item["target"][0].numpy() if "target" in item else None
    grid_scan, seed = (
        GridScan(source, mask, config.preprocess.spacing_mm, target),
        scan_seed(0, Scan.parse(item["scan"])),
    )
    for name, row in CORRUPTIONS.items():
        corrupted = corrupt(name, grid_scan, seed)
        if corrupted is None or (row.kind == "lesion" and has_lesion):
            continue
        started = time.process_time()
        score = typicality.score(corrupted.source, corrupted.mask)
        seconds.append(time.process_time() - started)
        yield _outcome(name, row.kind, score, corrupted)
        if name == "clean" and has_lesion is not None:
            yield _outcome(NATURAL[has_lesion], "lesion" if has_lesion else "harmless", score, corrupted)


def _outcome(name: str, kind: str, score: Score, scan: GridScan) -> dict[str, Any]:
    located = None
    if scan.lesion is not None:
        offset = np.subtract(score.lesion_voxel, scan.lesion) * scan.spacing_mm
        located = bool(np.linalg.norm(offset) <= NEAR_MM)
    return {"corruption": name, "kind": kind, "refused": score.refused, "flagged": score.flagged, "located": located}


def summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Percentages with Wilson intervals by corruption, columns COLUMNS."""
    rows = []
    for (name, kind), group in outcomes.groupby(["corruption", "kind"], sort=False):
        shares = [share for column in SHARES for share in _percentages(group[column])]
        located = 100 * group["located"].astype(float).mean()
        rows.append((name, kind, len(group), *shares, located))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _percentages(outcomes: Sequence[bool] | pd.Series) -> tuple[float, float, float]:
    """Percentage of true outcomes, and its Wilson interval."""
    from scipy.stats import binomtest  # half a second to import

    test = binomtest(int(np.sum(outcomes)), len(outcomes))
    low, high = test.proportion_ci(CONFIDENCE, method="wilson")
    return 100 * test.statistic, 100 * low, 100 * high


def _markdown(table: pd.DataFrame) -> str:
    rows = [["corruption", "kind", "n", "refused, %", "flagged, %", "located, %"]]
    for row in table.to_dict("records"):
        shares = [f"{row[name]:.0f} ({row[f'{name}_low']:.0f} to {row[f'{name}_high']:.0f})" for name in SHARES]
        located = "" if np.isnan(row["located"]) else f"{row['located']:.0f}"
        rows.append([row["corruption"], row["kind"], str(row["n"]), *shares, located])
    return markdown_table(rows)


def _arrays(item: Item) -> tuple[Any, Any]:
    """Main source and brain mask of a scan, `[D, H, W]`."""
    return item["source"][0].numpy(), item["mask"][0].numpy()
