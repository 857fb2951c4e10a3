"""The quality table: metrics, thresholds, outliers and the text of flags."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from dualflow.config import ReviewConfig, StudyConfig
from dualflow.data.quality_metrics import flag_scans, quality_metric, quality_table, record_metrics
from dualflow.data.tsv import read_table, table_text
from dualflow.errors import DataError
from dualflow.layout import Layout, Scan
from dualflow.modalities import MODALITIES

STUDY = StudyConfig(name="x", extra_sources=("FLAIR",))
SHAPE = {"solidity": 0.85, "core": 0.99, "outside": 0.0, "missing": 0.001, "symmetry": 0.97, "stretch": 1.1}


def fit(information, overlap, moved, before=None):
    metrics = {"mutual_information_nats": information, "overlap": overlap, "displacement_mm": moved}
    return metrics | {
        "before": None if before is None else {"mutual_information_nats": before[0], "overlap": before[1]}
    }


def record(target=True, brain_ml=1400.0, information=0.4, notes=(), mask=None, slope=9000.0):
    """Return the record of a preprocessed scan with these metrics."""
    quality = {
        "brain_ml": brain_ml,
        "brain_mask": SHAPE | (mask or {}),
        "source_to_template": fit(0.5, 0.96, 30.0),
        "FLAIR_to_source": fit(0.6, 1.0, 2.0, (0.3, 0.99)),
    }
    image = {"intensity": {"normaliser": "suvr", "slope": slope}, "pet": {"notes": list(notes)}}
    return {
        "source": {"intensity": {"normaliser": "robust"}},
        "quality": quality | ({"target_to_source": fit(information, 0.995, 12.0, (0.1, 0.9))} if target else {}),
        "target": image if target else None,
        "extra_sources": {"FLAIR": {"intensity": {"normaliser": "robust"}}},
        "brain_mask": {"made_by": "deepbet"},
    }


def table(tmp_path, records, study=STUDY, review=None):
    """Write the quality table of scans with these records, and read it back."""
    layout, scans = Layout(tmp_path), [Scan(f"{index:02d}") for index in range(len(records))]
    for scan, scan_record in zip(scans, records, strict=True):
        path = layout.record(scan, MODALITIES["T1w"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(scan_record))
    quality = quality_table(layout, [scan.key for scan in scans], study, review or ReviewConfig())
    layout.quality.write_text(table_text(quality))
    return read_table(layout.quality)


def test_the_table_has_a_column_for_every_metric(tmp_path):
    """Columns follow the order of the steps and do not depend on targets; unknown metrics are n/a."""
    quality = table(tmp_path, [record(), record(target=False)])
    assert list(quality.columns) == [
        "scan", "subject", "brain_ml", "template_mi", "template_dice", "template_mm",
        "target_mi_before", "target_mi", "target_coverage", "target_mm", "reference_value",
        "FLAIR_mi_before", "FLAIR_mi", "FLAIR_coverage", "FLAIR_mm",
        "mask_solidity", "mask_core", "mask_outside", "mask_missing", "mask_symmetry", "mask_stretch",
        "seconds", "flags",
    ]  # fmt: skip
    first, second = quality.to_dict("records")
    assert (first["target_mi_before"], first["target_mi"], first["reference_value"]) == ("0.1", "0.4", "9000.0")
    assert second["target_mi"] is second["reference_value"] is second["flags"] is first["flags"] is None
    assert set(record_metrics(record())) <= set(quality.columns)


def test_notes_on_the_source_and_a_reference_out_of_view_are_flagged(tmp_path):
    """A PET may be the source, and its reference region may lie partly outside the field of view."""
    moved, cut = record(), record()
    moved["source"]["pet"] = {"notes": ["its head moves by up to 9 mm"]}
    cut["target"]["intensity"]["reference_shown"] = 0.72
    flags = table(tmp_path, [moved, cut, record()])["flags"].tolist()
    expected = "target: its field of view holds 72% of the reference region"
    assert flags == ["source: its head moves by up to 9 mm", expected, None]


def test_seconds_are_summed_over_steps(tmp_path):
    """They are unknown if none were recorded."""
    path = Layout(tmp_path).scan_seconds(Scan("00"))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"read": 1.5, "template": 2.25}))
    assert list(table(tmp_path, [record(), record()])["seconds"]) == ["3.8", None]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"brain_ml": 700.0}, "brain volume 700 mL, expected at least 900 mL"),
        ({"brain_ml": 2100.0}, "brain volume 2100 mL, expected at most 1900 mL"),
        ({"information": 0.09}, "target MI 0.090 nats, expected at least 0.150 nats"),
        ({"mask": {"stretch": 1.8}}, "stretch to the template 1.80, expected at most 1.30"),
        ({"notes": ["unit 'cps' is not known; check\n Units"]}, "target: unit 'cps' is not known, check Units"),
    ],
)
def test_a_flag_has_metric_value_and_threshold(tmp_path, options, reason):
    """The flag is on one line without a semicolon, because semicolons separate flags."""
    assert list(table(tmp_path, [record(), record(**options)])["flags"]) == [None, reason]


def test_flags_of_a_scan_are_joined(tmp_path):
    """A scan lists all of its flags."""
    (cell,) = table(tmp_path, [record(brain_ml=700.0, information=0.09, notes=["a"])])["flags"]
    assert cell.split("; ")[0] == "target: a"
    assert len(cell.split("; ")) == 3


def test_thresholds_are_configurable(tmp_path):
    """Another threshold changes the flags."""
    strict = ReviewConfig(min_mutual_information=0.45)
    assert (
        "target MI 0.400 nats, expected at least 0.450 nats" in table(tmp_path, [record()], review=strict)["flags"][0]
    )


def test_outliers_are_flagged(tmp_path):
    """A scan that passes all thresholds is flagged if it is an outlier towards the worse side."""
    rng = np.random.default_rng(0)
    usual = [record(information=0.5 + 0.01 * value, slope=9000 * np.exp(0.2 * value)) for value in rng.normal(size=20)]
    outliers = [record(information=0.3), record(information=0.9), record(information=0.5, slope=9.0)]
    *usual_flags, low, high, dose = table(tmp_path, [*usual, *outliers])["flags"]
    assert usual_flags == [None] * 20
    assert re.fullmatch(r"target MI 0\.300 nats, far below the study's median of 0\.\d+ nats", low)
    assert high is None
    assert re.fullmatch(r"reference value 9, far below the study's median of \d{4,5}\.?\d*", dose)


def test_few_scans_are_not_compared(tmp_path):
    """A few scans give no reliable robust SD."""
    rng = np.random.default_rng(0)
    usual = [record(information=0.5 + 0.01 * value) for value in rng.normal(size=8)]
    assert set(table(tmp_path, [*usual, record(information=0.3)])["flags"]) == {None}


@pytest.mark.parametrize(
    ("column", "usual", "negligible", "outlier"),
    [
        ("target_coverage", 1.0, 0.995, 0.985),
        ("mask_outside", 0.0003, 0.0007, 0.004),
        ("reference_value", 9000.0, 9900.0, 90.0),
        ("brain_ml", 1400.0, 1450.0, 1100.0),
    ],
)
def test_negligible_differences_are_not_flagged(column, usual, negligible, outlier):
    """The floor on the robust SD prevents outliers in a study of almost equal values."""
    flags = flag_scans(pd.DataFrame({column: [usual] * 15 + [negligible, outlier]}), ReviewConfig())
    assert flags[:-1] == [[] for _ in range(16)]
    assert "far " in flags[-1][0]


def test_a_scan_without_a_mask_of_the_study_is_flagged(tmp_path):
    """In a study with masks, a scan that was masked by deepbet is flagged."""
    study = STUDY.model_copy(update={"masks": tmp_path})
    masked = record() | {"brain_mask": {"file": "m.nii.gz", "sha256": "0"}}
    first, second = table(tmp_path, [masked, record()], study)["flags"]
    assert first is None
    assert "no brain mask in study.masks" in second


def test_a_missing_record_is_an_error(tmp_path):
    """The error names the step that writes the record."""
    with pytest.raises(DataError, match="run the preprocess step again"):
        quality_table(Layout(tmp_path), ["sub-01"], STUDY, ReviewConfig())


@pytest.mark.parametrize(
    ("column", "label", "value", "text"),
    [
        ("brain_ml", "brain volume", 1421.3, "1421 mL"),
        ("target_mi", "target MI", 0.25, "0.250 nats"),
        ("FLAIR_mi_before", "FLAIR MI before alignment", 0.25, "0.250 nats"),
        ("FLAIR_mm", "FLAIR moved by", 3.21, "3.2 mm"),
        ("reference_value", "reference value", 18472.25, "18472"),
        ("mask_outside", "mask outside the template", 0.0125, "1.25%"),
        ("snr_head", "snr head", 12.3456, "12.35"),
    ],
)
def test_metrics_are_printed_with_name_and_unit(column, label, value, text):
    """The unit depends on the column's name or suffix; an unknown column has none."""
    assert quality_metric(column).label == label
    assert quality_metric(column).text(value) == text
