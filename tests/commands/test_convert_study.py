"""The workflow's conversion of held-out scans."""

from types import SimpleNamespace

import pandas as pd

from dualflow.commands import convert_study as module
from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.tsv import read_table
from dualflow.errors import IntensityError
from dualflow.inference.convert import SIDE, VERDICT
from dualflow.manifest import write_manifest


def test_a_scan_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """Its reason is in the table of verdicts, and its volumes of an earlier conversion are removed.

    A refused scan is converted too, for a reason that names no option.
    """
    config = parse_config({"study": {"name": "t", "bids": str(tmp_path), "results": str(tmp_path / "results")}})
    layout = config.layout
    commit_text(layout.root / "volume", "volume")

    def manifest_of(key):
        path, outcome = layout.manifest(f"convert/{key}"), "refused" if key == "sub-3" else "ok"
        files = {"synth": layout.root / "volume"} if key == "sub-3" else {}
        facts = {VERDICT: {"verdict": outcome, "reasons": ["unlike"] if files else [], "figures": {}}, SIDE: {}}
        write_manifest(path, step="convert", outputs=files, inputs={}, config={}, facts=facts)
        return path

    def convert_if_needed(item, *_):
        if item["scan"] == "sub-2":
            raise IntensityError("the predicted spread has 1 NaN or infinite voxels")
        return manifest_of(item["scan"])

    card = SimpleNamespace(side=SideEncoder(), weights_sha256="0")
    converter = SimpleNamespace(predictor=SimpleNamespace(card=card), convert_if_needed=convert_if_needed)
    items = {"test": [{"scan": "sub-1"}, {"scan": "sub-2"}], "convert": [{"scan": "sub-3"}]}
    pairs = pd.DataFrame(
        {"scan": ["sub-1", "sub-2", "sub-3"], "source": ["a", "b", "c"], "split": ["test", "test", "convert"]}
    )
    monkeypatch.setattr(module, "Converter", SimpleNamespace(load=lambda *_, **__: converter))
    monkeypatch.setattr(module, "usable_pairs", lambda _: pairs)
    monkeypatch.setattr(module, "iterate_split", lambda _, __, split, ___: iter(items[split]))
    earlier = manifest_of("sub-2")
    module.convert(config, "dualflow", 0)
    rows = read_table(layout.conversions).set_index("scan")
    assert rows["verdict"].to_dict() == {"sub-2": "failed", "sub-3": "refused", "sub-1": "ok"}
    assert rows["reason"]["sub-3"] == "unlike; converted because a study converts every scan"
    assert "predicted spread" in rows["reason"]["sub-2"]
    assert "sub-2: failed: " in capsys.readouterr().err
    assert not earlier.exists()
