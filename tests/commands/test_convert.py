"""The page of an output folder."""

import pytest

from dualflow.commands import convert as command
from dualflow.commands.convert import write_page
from dualflow.config import ConvertConfig
from dualflow.data.quarantine import Quarantine
from dualflow.errors import DataError
from dualflow.inference.folder_tables import write_tables
from dualflow.layout import Layout
from dualflow.manifest import write_manifest


@pytest.fixture
def layout(tmp_path):
    """The output folder of two conversions, with an older and a newer model."""
    layout = Layout(tmp_path, ".")
    facts = {"side": {}, "verdict": {"verdict": "ok", "reasons": [], "figures": {}}}
    for key, model in (("sub-1", "old"), ("sub-2", "new")):
        manifest = layout.manifest(f"convert/{key}")
        write_manifest(manifest, step="convert", outputs={}, inputs={"model": model}, config={}, facts=facts)
        write_tables(layout, [key], [])
    return layout


def test_the_page_covers_all_commands_and_names_further_models(card, layout):
    """It is that of the last command's model; scans of an earlier training are counted."""
    write_page(layout, card.model_copy(update={"weights_sha256": "new"}))
    page = layout.conversion_page.read_text()
    assert "2 scans: 2 ok" in page
    assert "(new), another one for 1 scan." in page
    assert all(key in page for key in ("sub-1", "sub-2"))


def test_the_page_shows_scans_that_are_excluded_now(card, layout, monkeypatch):
    """A command whose scans all have become unusable ends with an error, and its tables tell why."""
    write_page(layout, card)

    def excludes(*_, **__):
        write_tables(layout, (), [Quarantine("sub-1", "convert", "the file is gone")])
        raise DataError("no usable scan")

    monkeypatch.setattr(command, "convert_inputs", excludes)
    monkeypatch.setattr(command, "load_card", lambda _: card)
    with pytest.raises(DataError, match="no usable scan"):
        command.convert([], layout.root, layout.root, ConvertConfig())
    assert "the file is gone" in layout.conversion_page.read_text()
