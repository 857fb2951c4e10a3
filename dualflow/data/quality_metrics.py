"""The quality table: figures of every scan on the model grid, and why a person should look at it.

A scan is flagged where a figure passes a threshold of the configuration, where it lies far from those of the study's
other scans, and where preprocessing noted something. A flag drops nothing: whether a scan is used is for its reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from dualflow.config import ReviewConfig, StudyConfig
from dualflow.data.tsv import numbers
from dualflow.imaging.record import read_record
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality

UNKNOWN = "–"  # noqa: RUF001 - a dash, as tables show what is not known
FEWEST = 10
"""Scans whose figure is known, from which on one of them can lie far from the others."""
_MAD = 1.4826


class Measure(NamedTuple):
    """How a quality figure is shown, and which of its values are odd.

    Attributes:
        label: what it is called.
        unit: of its values.
        form: format of a value.
        worse: the side of the study's median that is looked at; '' where neither says anything.
        ratio: whether it is compared by its logarithm.
        least: robust standard deviation that a study has at least, so that trifles are not far from equal values; of
            the logarithm where that is compared.
    """

    label: str
    unit: str = ""
    form: str = ".4g"
    worse: Literal["low", "high", "both", ""] = ""
    ratio: bool = False
    least: float = 0.0

    def text(self, value: float) -> str:
        """The value with its unit, or a dash where it is not known."""
        return UNKNOWN if np.isnan(value) else f"{value:{self.form}} {self.unit}".rstrip()


MEASURES = {
    "brain_ml": Measure("brain volume", "mL", ".0f", "both", least=20.0),
    "mask_solidity": Measure("mask solidity", "", ".3f", "low", least=0.005),
    "mask_core": Measure("mask core", "", ".3f", "low", least=0.001),
    "mask_outside": Measure("mask outside the template", "", ".2%", "high", least=0.0005),
    "mask_missing": Measure("missing from the mask", "", ".2%", "high", least=0.002),
    "mask_symmetry": Measure("mask symmetry", "", ".3f", "low", least=0.003),
    "mask_stretch": Measure("stretch to the template", "", ".2f", "high", least=0.01),
    "reference_value": Measure("reference value", "", ".5g", "both", ratio=True, least=0.05),
    "seconds": Measure("computing time", "s", ".0f"),
    "mi": Measure("MI", "nats", ".3f", "low", least=0.01),
    "mi_before": Measure("MI before alignment", "nats", ".3f"),
    "dice": Measure("Dice", "", ".3f", "low", least=0.003),
    "coverage": Measure("coverage", "", ".3f", "low", least=0.002),
    "mm": Measure("moved by", "mm", ".1f", "high", least=1.0),
}
"""Columns of the quality table, by name or by ending: `target_mi` is the `mi` of the target."""


def ending(column: str) -> str | None:
    """The row of MEASURES that a column belongs to, or None."""
    endings = (name for name in MEASURES if column == name or column.endswith(f"_{name}"))
    return max(endings, key=len, default=None)


def measure(column: str) -> Measure:
    """How a column of the quality table is shown."""
    name = ending(column)
    if name is None:
        return Measure(column.replace("_", " "))
    whose = column.removesuffix(name).rstrip("_")
    return MEASURES[name]._replace(label=f"{whose} {MEASURES[name].label}".lstrip())


def limits(review: ReviewConfig) -> dict[str, tuple[float, float]]:
    """Lowest and highest value, by row of MEASURES, beyond which a scan is flagged."""
    return {
        "brain_ml": review.brain_ml,
        "mask_solidity": (review.min_mask_solidity, np.inf),
        "mask_core": (review.min_mask_core, np.inf),
        "mask_outside": (-np.inf, review.max_mask_outside),
        "mask_missing": (-np.inf, review.max_mask_missing),
        "mask_symmetry": (review.min_mask_symmetry, np.inf),
        "mask_stretch": (-np.inf, review.max_mask_stretch),
        "mi": (review.min_mutual_information, np.inf),
        "dice": (review.min_template_overlap, np.inf),
        "coverage": (review.min_target_coverage, np.inf),
        "mm": (-np.inf, review.max_displacement_mm),
    }


def quality_table(layout: Layout, scans: Sequence[str], study: StudyConfig, review: ReviewConfig) -> pd.DataFrame:
    """One row per preprocessed scan: `scan`, `subject`, the figures, and `flags`, reasons joined by '; '.

    Args:
        layout: where the scans' records are.
        scans: keys of the scans on the model grid.
        study: the study they are of.
        review: when a scan is flagged.

    Raises:
        DataError: a scan's record cannot be read.
    """
    parsed = [Scan.parse(key) for key in scans]
    row = modality(study.source)
    records = [read_record(layout.record(scan, row)) for scan in parsed]
    rows = [
        {"scan": scan.key, "subject": scan.subject, **figures(record), "seconds": _seconds(layout, scan)}
        for scan, record in zip(parsed, records, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["scan", "subject", *_columns(study), "seconds"])
    told = [notes(record, study) for record in records]
    found = [[*noted, *odd] for noted, odd in zip(told, flags(table, review), strict=True)]
    return table.assign(flags=pd.Series(["; ".join(one) or None for one in found], dtype=object))


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures in a scan's record, by column."""
    quality, target = record["quality"], record["target"] or {}
    row = {"brain_ml": round(quality["brain_ml"], 1)}
    row |= {f"mask_{name}": value for name, value in quality["brain_mask"].items()}
    row |= _alignment("template", quality["source_to_template"], "dice")
    for name in ("target", *record["extra_sources"]):
        row |= _alignment(name, quality.get(f"{name}_to_source"), "coverage")
    if target.get("intensity", {}).get("normaliser") == "suvr":
        row["reference_value"] = float(f"{target['intensity']['slope']:.6g}")
    return row


def notes(record: Mapping[str, Any], study: StudyConfig) -> list[str]:
    """What preprocessing noted of a scan, as flags."""
    images = {"target": record["target"] or {}, **record["extra_sources"]}
    found = [f"{name}: {note}" for name, image in images.items() for note in image.get("pet", {}).get("notes", [])]
    if study.masks and "file" not in record["brain_mask"]:
        found.append("has no brain mask in study.masks, and was given deepbet's")
    return [" ".join(note.replace(";", ",").split()) for note in found]


def flags(table: pd.DataFrame, review: ReviewConfig) -> list[list[str]]:
    """Why each row of a table of figures is to be looked at; each figure gives one reason at most."""
    bounds, found = limits(review), [list[str]() for _ in range(len(table))]
    for column in table.columns:
        name, values = ending(str(column)), numbers(table[column])
        if name is None:
            continue
        row, (low, high) = measure(str(column)), bounds.get(name, (-np.inf, np.inf))
        apart = _robust_distance(values, row)
        for place, (value, distance) in enumerate(zip(values, apart, strict=True)):
            if value < low:
                found[place].append(f"{row.label} {row.text(value)}, expected at least {row.text(low)}")
            elif value > high:
                found[place].append(f"{row.label} {row.text(value)}, expected at most {row.text(high)}")
            elif abs(distance) > review.max_deviation:
                side = "above" if distance > 0 else "below"
                found[place].append(
                    f"{row.label} {row.text(value)}, far {side} the study's {row.text(values.median())}"
                )
    return found


def _robust_distance(values: pd.Series, row: Measure) -> pd.Series:
    """Distance from the median in robust standard deviations, 0 on the side that is not looked at."""
    none = pd.Series(0.0, index=values.index)
    if not row.worse or values.notna().sum() < FEWEST:
        return none
    scale = np.log(values.where(values > 0)) if row.ratio else values
    apart = scale - scale.median()
    spread = max(row.least, _MAD * apart.abs().median())
    sides = {"low": (-np.inf, 0.0), "high": (0.0, np.inf), "both": (-np.inf, np.inf)}
    return (apart / spread).clip(*sides[row.worse]).fillna(0.0)


def _alignment(name: str, found: Mapping[str, Any] | None, overlap: str) -> dict[str, float]:
    if found is None:
        return {}
    before = {f"{name}_mi_before": round(found["before"]["mutual_information_nats"], 4)} if found["before"] else {}
    return before | {
        f"{name}_mi": round(found["mutual_information_nats"], 4),
        f"{name}_{overlap}": round(found["overlap"], 4),
        f"{name}_mm": round(found["displacement_mm"], 2),
    }


def _columns(study: StudyConfig) -> list[str]:
    """The columns of figures that a study has, known of any scan or not."""
    moved = ("mi_before", "mi", "coverage", "mm")
    return [
        "brain_ml",
        *(f"template_{name}" for name in ("mi", "dice", "mm")),
        *(f"target_{name}" for name in moved),
        "reference_value",
        *(f"{source}_{name}" for source in study.extra_sources for name in moved),
        *(name for name in MEASURES if name.startswith("mask_")),
    ]


def _seconds(layout: Layout, scan: Scan) -> float:
    """How long a scan took; NaN where that is not known."""
    try:
        return round(float(sum(json.loads(layout.scan_seconds(scan).read_text()).values())), 1)
    except (OSError, ValueError):
        return float("nan")
