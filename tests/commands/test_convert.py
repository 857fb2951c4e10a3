"""The page of an output folder."""

from dualflow.commands.convert import write_page
from dualflow.inference.folder_tables import write_tables
from dualflow.layout import Layout
from dualflow.manifest import write_manifest


def test_the_page_covers_all_commands_and_names_further_models(card, tmp_path):
    """It is that of the last command's model; scans of an earlier training are counted."""
    layout = Layout(tmp_path, ".")
    facts = {"side": {}, "verdict": {"verdict": "ok", "reasons": [], "figures": {}}}
    for key, model in (("sub-1", "old"), ("sub-2", "new")):
        manifest = layout.manifest(f"convert/{key}")
        write_manifest(manifest, step="convert", outputs={}, inputs={"model": model}, config={}, facts=facts)
        write_tables(layout, [key], [])
    write_page(layout, card.model_copy(update={"weights_sha256": "new"}))
    page = layout.conversion_page.read_text()
    assert "2 scans: 2 ok" in page
    assert "(new), another one for 1 scan." in page
    assert all(key in page for key in ("sub-1", "sub-2"))
