"""The table of a conversion."""

import json

import pytest

from dualflow.commit import commit_json, commit_text
from dualflow.data.quarantine import Quarantine
from dualflow.data.tsv import read_table
from dualflow.inference.conversion_table import COLUMNS, conversion_table, summarise, write_conversion_table
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest


@pytest.fixture
def layout(tmp_path):
    """Manifests of five conversions."""
    layout = Layout(tmp_path, ".")
    volume = tmp_path / "volume"
    commit_text(volume, "volume")

    def write(key, verdict, typicality, *, outputs=True, reasons=()):
        figures = {"typicality": typicality, "typicality_threshold": 3.0, "age": None}
        facts = {"side": {"sex": "F"}, "verdict": {"verdict": verdict, "reasons": list(reasons), "figures": figures}}
        files = {"synth": volume} if outputs else {}
        write_manifest(
            layout.manifest(f"convert/{key}"), step="convert", outputs=files, inputs={}, config={}, facts=facts
        )

    write("sub-1", "ok", 1.0)
    write("sub-2", "review", 2.0, reasons=["age is 90"])
    write("sub-3", "refused", 9.0, outputs=False, reasons=["unlike", "too coarse"])
    write("sub-4", "refused", 5.0, reasons=["unlike"])
    write("sub-5", "ok", 2.5)
    commit_json(layout.scan_seconds(Scan("1")), {"read": 1.5})
    commit_json(layout.conversion_seconds(Scan("1")), {"predict": 0.75})
    return layout


KEYS = [f"sub-{label}" for label in (1, 2, 3, 4, 5, 7)]


def test_side_columns_give_way_to_other_columns(layout):
    """A study may have a column `converted`, or one with the name of a figure."""
    manifest = layout.manifest("convert/sub-1")
    content = json.loads(manifest.read_text())
    content["facts"]["side"] = {"converted": "no", "typicality": "odd", "sex": "F"}
    commit_json(manifest, content)
    row = conversion_table(layout, KEYS, []).set_index("scan").loc["sub-1"]
    assert (row["converted"], row["side_converted"]) == (True, "no")
    assert (row["typicality"], row["side_typicality"], row["sex"]) == (1.0, "odd", "F")


def test_every_scan_has_a_row_and_the_worst_come_first(layout):
    """Failed scans, refused ones by how far they are beyond the threshold, those to review, and the others."""
    table = conversion_table(layout, KEYS, [Quarantine("sub-6", "preprocess", "no brain")])
    assert list(table["scan"]) == ["sub-6", "sub-3", "sub-4", "sub-2", "sub-5", "sub-1"]
    assert list(table.columns[: len(COLUMNS)]) == list(COLUMNS)
    rows = table.set_index("scan")
    assert rows["verdict"]["sub-6"] == "failed"
    assert rows["sex"]["sub-1"] == "F"
    assert list(rows.index[~rows["converted"]]) == ["sub-6", "sub-3"]
    assert rows["reason"]["sub-3"] == "unlike; too coarse"
    assert rows["reason"]["sub-4"] == "unlike; converted because of --force"
    assert rows["seconds"]["sub-1"] == 2.25
    assert summarise(table) == "2 ok, 1 review, 2 refused, 1 failed"


def test_a_scan_that_failed_again_has_only_its_reason(layout):
    """The verdict of an earlier conversion does not count; volumes that it left are mentioned."""
    excluded = [Quarantine("sub-1", "convert", "damaged"), Quarantine("sub-3", "convert", "damaged")]
    table = conversion_table(layout, KEYS, excluded)
    assert list(table["scan"]).count("sub-1") == 1
    rows = table.set_index("scan")
    assert rows["verdict"]["sub-1"] == "failed"
    assert rows["reason"]["sub-1"] == "damaged; its volumes are those of an earlier conversion"
    assert rows["reason"]["sub-3"] == "damaged"


def test_the_table_is_read_back(layout, tmp_path):
    """Unknown figures are n/a, and a reason is one line."""
    table = conversion_table(layout, KEYS, [Quarantine("sub-6", "preprocess", "a\nb\tc")])
    write_conversion_table(tmp_path / "conversion.tsv", table)
    rows = read_table(tmp_path / "conversion.tsv").set_index("scan")
    assert rows["reason"]["sub-6"] == "a b c"
    assert rows["age"]["sub-1"] is None
    assert float(rows["typicality"]["sub-3"]) == 9


def test_a_conversion_of_nothing_has_an_empty_table(tmp_path):
    """The columns are there."""
    table = conversion_table(Layout(tmp_path, "."), [], [])
    assert table.empty
    assert list(table) == list(COLUMNS)
    assert summarise(table) == "no scans"
