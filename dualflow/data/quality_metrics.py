"""The quality table: metrics of every preprocessed scan, and flags for review.

A scan is flagged if a metric passes a threshold of the configuration, if it is an outlier of the study, or if
preprocessing left a note. Flagged scans are not excluded; that is the reader's decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from dualflow.config import ReviewConfig, StudyConfig
from dualflow.data.quality_notes import record_notes, usual_versions
from dualflow.data.tsv import numbers
from dualflow.imaging.record import read_record
from dualflow.imaging.stopwatch import total_seconds
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality

UNKNOWN = "–"  # noqa: RUF001 - an en dash, as in printed tables
MIN_SCANS = 10
"""Minimum number of scans with a known value for outlier detection."""
_SD_PER_MAD = 1.4826


class QualityMetric(NamedTuple):
    """How a quality metric is shown, and which of its values are outliers.

    Attributes:
        label: name in tables.
        unit: unit of the values.
        format_spec: format of a value.
        outlier_side: side of the study's median on which values are checked; '' for neither.
        log_scale: whether logarithms are compared.
        min_sd: floor on the study's robust SD, so that negligible differences are not flagged; of the logarithm if
            `log_scale`.
    """

    label: str
    unit: str = ""
    format_spec: str = ".4g"
    outlier_side: Literal["low", "high", "both", ""] = ""
    log_scale: bool = False
    min_sd: float = 0.0

    def text(self, value: float) -> str:
        """The value with its unit, or a dash if it is unknown."""
        return UNKNOWN if np.isnan(value) else f"{value:{self.format_spec}} {self.unit}".rstrip()


METRICS = {
    "brain_ml": QualityMetric("brain volume", "mL", ".0f", "both", min_sd=20.0),
    "mask_solidity": QualityMetric("mask solidity", "", ".3f", "low", min_sd=0.005),
    "mask_core": QualityMetric("mask core", "", ".3f", "low", min_sd=0.001),
    "mask_outside": QualityMetric("mask outside the template", "", ".2%", "high", min_sd=0.0005),
    "mask_missing": QualityMetric("missing from the mask", "", ".2%", "high", min_sd=0.002),
    "mask_symmetry": QualityMetric("mask symmetry", "", ".3f", "low", min_sd=0.003),
    "mask_stretch": QualityMetric("stretch to the template", "", ".2f", "high", min_sd=0.01),
    "reference_value": QualityMetric("reference value", "", ".5g", "both", log_scale=True, min_sd=0.05),
    "seconds": QualityMetric("computing time", "s", ".0f"),
    "mi": QualityMetric("MI", "nats", ".3f", "low", min_sd=0.01),
    "mi_before": QualityMetric("MI before alignment", "nats", ".3f"),
    "dice": QualityMetric("Dice", "", ".3f", "low", min_sd=0.003),
    "coverage": QualityMetric("coverage", "", ".3f", "low", min_sd=0.002),
    "mm": QualityMetric("moved by", "mm", ".1f", "high", min_sd=1.0),
}
"""Metrics by the name or suffix of their column: `target_mi` is the `mi` of the target."""


def metric_name(column: str) -> str | None:
    """The row of METRICS that a column belongs to, or None."""
    suffixes = (name for name in METRICS if column == name or column.endswith(f"_{name}"))
    return max(suffixes, key=len, default=None)


def quality_metric(column: str) -> QualityMetric:
    """The metric of a column of the quality table, labelled with its image."""
    name = metric_name(column)
    if name is None:
        return QualityMetric(column.replace("_", " "))
    image = column.removesuffix(name).rstrip("_")
    return METRICS[name]._replace(label=f"{image} {METRICS[name].label}".lstrip())


def thresholds(review: ReviewConfig) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each metric beyond which a scan is flagged, by row of METRICS."""
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
    """One row per preprocessed scan: `scan`, `subject`, the metrics, and `flags`, joined by '; '.

    Args:
        layout: paths of the scans' records.
        scans: keys of the preprocessed scans.
        study: their study.
        review: thresholds.

    Raises:
        DataError: a scan's record cannot be read.
    """
    parsed = [Scan.parse(key) for key in scans]
    row = modality(study.source)
    records = [read_record(layout.record(scan, row)) for scan in parsed]
    rows = [
        {
            "scan": scan.key,
            "subject": scan.subject,
            **record_metrics(record),
            "seconds": round(total_seconds(layout.scan_seconds(scan)), 1),
        }
        for scan, record in zip(parsed, records, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["scan", "subject", *_columns(study), "seconds"])
    usual = usual_versions(records)
    notes = [record_notes(record, study, usual) for record in records]
    flags = [
        "; ".join([*scan_notes, *scan_flags])
        for scan_notes, scan_flags in zip(notes, flag_scans(table, review), strict=True)
    ]
    return table.assign(flags=pd.Series([text or None for text in flags], dtype=object))


def record_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The quality metrics in a scan's record, by column."""
    quality, target = record["quality"], record["target"] or {}
    row = {"brain_ml": round(quality["brain_ml"], 1)}
    row |= {f"mask_{name}": value for name, value in quality["brain_mask"].items()}
    row |= _alignment("template", quality["source_to_template"], "dice")
    for name in ("target", *record["extra_sources"]):
        row |= _alignment(name, quality.get(f"{name}_to_source"), "coverage")
    if target.get("intensity", {}).get("normaliser") == "suvr":
        row["reference_value"] = float(f"{target['intensity']['slope']:.6g}")
    return row


def flag_scans(table: pd.DataFrame, review: ReviewConfig) -> list[list[str]]:
    """The flags of each row of a table of metrics, at most one per metric."""
    bounds, flags = thresholds(review), [list[str]() for _ in range(len(table))]
    for column in table.columns:
        name, values = metric_name(str(column)), numbers(table[column])
        if name is None:
            continue
        metric, (low, high) = quality_metric(str(column)), bounds.get(name, (-np.inf, np.inf))
        for row, (value, z) in enumerate(zip(values, _robust_z(values, metric), strict=True)):
            if value < low:
                flags[row].append(f"{metric.label} {metric.text(value)}, expected at least {metric.text(low)}")
            elif value > high:
                flags[row].append(f"{metric.label} {metric.text(value)}, expected at most {metric.text(high)}")
            elif abs(z) > review.max_deviation:
                side, median = "above" if z > 0 else "below", metric.text(values.median())
                flags[row].append(f"{metric.label} {metric.text(value)}, far {side} the study's median of {median}")
    return flags


def _robust_z(values: pd.Series, metric: QualityMetric) -> pd.Series:
    """Distance from the median in robust SDs, 0 on a side that is not checked and for unknown values."""
    if not metric.outlier_side or values.notna().sum() < MIN_SCANS:
        return pd.Series(0.0, index=values.index)
    scaled = np.log(values.where(values > 0)) if metric.log_scale else values
    deviation = scaled - scaled.median()
    sd = max(metric.min_sd, _SD_PER_MAD * deviation.abs().median())
    sides = {"low": (-np.inf, 0.0), "high": (0.0, np.inf), "both": (-np.inf, np.inf)}
    return (deviation / sd).clip(*sides[metric.outlier_side]).fillna(0.0)


def _alignment(name: str, quality: Mapping[str, Any] | None, overlap: str) -> dict[str, float]:
    if quality is None:
        return {}
    before = quality["before"]
    columns = {f"{name}_mi_before": round(before["mutual_information_nats"], 4)} if before else {}
    return columns | {
        f"{name}_mi": round(quality["mutual_information_nats"], 4),
        f"{name}_{overlap}": round(quality["overlap"], 4),
        f"{name}_mm": round(quality["displacement_mm"], 2),
    }


def _columns(study: StudyConfig) -> list[str]:
    """The metric columns of a study, whether or not any scan has a value."""
    aligned = ("mi_before", "mi", "coverage", "mm")
    return [
        "brain_ml",
        *(f"template_{name}" for name in ("mi", "dice", "mm")),
        *(f"target_{name}" for name in aligned),
        "reference_value",
        *(f"{source}_{name}" for source in study.extra_sources for name in aligned),
        *(name for name in METRICS if name.startswith("mask_")),
    ]
