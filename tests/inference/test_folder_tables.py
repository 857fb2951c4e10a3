"""Tables of an output folder after several commands."""

import threading

import pytest

from dualflow.commit import commit_text
from dualflow.data.quarantine import Quarantine, read_quarantine
from dualflow.data.tsv import read_table
from dualflow.inference.folder_tables import folder_table, scans_of_other_models, tables_lock, write_tables
from dualflow.layout import Layout
from dualflow.manifest import write_manifest


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path, ".")


def convert(layout, key, model="a"):
    """Write the manifest of a conversion."""
    facts = {"side": {}, "verdict": {"verdict": "ok", "reasons": [], "figures": {}}}
    manifest = layout.manifest(f"convert/{key}")
    write_manifest(manifest, step="convert", outputs={}, inputs={"model": model}, config={}, facts=facts)


def verdicts(table):
    return dict(zip(table["scan"], table["verdict"], strict=True))


def test_scans_of_earlier_commands_keep_their_rows(layout):
    """Each command returns the rows of its own scans, on which its exit code depends."""
    convert(layout, "sub-1")
    bad = Quarantine("sub-2", "preprocess", "no brain")
    assert verdicts(write_tables(layout, ["sub-1", "sub-2"], [bad])) == {"sub-2": "failed", "sub-1": "ok"}
    convert(layout, "sub-3")
    assert verdicts(write_tables(layout, ["sub-3"], [])) == {"sub-3": "ok"}
    everything = {"sub-2": "failed", "sub-1": "ok", "sub-3": "ok"}
    assert verdicts(read_table(layout.conversions)) == verdicts(folder_table(layout)) == everything
    assert read_quarantine(layout.quarantine) == [bad]


def test_a_new_result_replaces_an_earlier_row(layout):
    """A failed scan that is converted later leaves quarantine.tsv, and the reverse."""
    write_tables(layout, ["sub-1"], [Quarantine("sub-1", "preprocess", "no brain")])
    convert(layout, "sub-1")
    assert verdicts(write_tables(layout, ["sub-1"], [])) == {"sub-1": "ok"}
    assert read_quarantine(layout.quarantine) == []
    write_tables(layout, ["sub-1"], [Quarantine("sub-1", "convert", "odd")])
    assert verdicts(read_table(layout.conversions)) == {"sub-1": "failed"}


@pytest.mark.parametrize("text", ["no table", "scan\tstep\nsub-1"])
def test_a_damaged_table_does_not_end_a_conversion(layout, text):
    """It is written anew."""
    commit_text(layout.quarantine, text)
    convert(layout, "sub-1")
    assert verdicts(write_tables(layout, ["sub-1"], [])) == {"sub-1": "ok"}
    assert read_quarantine(layout.quarantine) == []


def test_writers_wait_for_each_other(layout, capfd):
    """Otherwise the slower of two commands would write a table without the rows of the faster one."""
    convert(layout, "sub-1")
    writer = threading.Thread(target=write_tables, args=(layout, ["sub-1"], []))
    with tables_lock(layout):
        writer.start()
        writer.join(0.5)
        assert not layout.conversions.exists()
        convert(layout, "sub-2")
    writer.join(60)
    assert verdicts(read_table(layout.conversions)) == {"sub-1": "ok", "sub-2": "ok"}
    assert "another conversion writes its tables" in capfd.readouterr().err


def test_scans_of_other_models_are_counted(layout, card):
    """A folder may hold conversions by a model that was trained again since."""
    for key, model in (("sub-1", "new"), ("sub-2", "old")):
        convert(layout, key, model)
    assert scans_of_other_models(layout, card.model_copy(update={"weights_sha256": "new"})) == 1
