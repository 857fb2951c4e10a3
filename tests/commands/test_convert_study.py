"""The workflow's conversion of held-out scans."""

from types import SimpleNamespace

import pandas as pd

from dualflow.commands import convert_study as module
from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.tsv import read_table
from dualflow.errors import DataError, IntensityError, ShapeError
from dualflow.inference import scan_conversion
from dualflow.inference.conversion_record import SIDE, VERDICT
from dualflow.inference.convert import Converter
from dualflow.layout import Scan
from dualflow.manifest import verify_manifests, write_manifest
from dualflow.modalities import modality


def test_a_scan_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """Its reason is in the table of verdicts, and its earlier volumes are removed, unless memory was short.

    It may fail while its preprocessed volumes are read, too. A refused scan is converted, for a reason that names no
    option.
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

    def convert_if_needed(_, item, *__):
        if item["scan"] == "sub-2":
            raise IntensityError("the predicted spread has 1 NaN or infinite voxels")
        if item["scan"] == "sub-5":
            raise ShapeError("source (1,) and mask (2,)")
        if item["scan"] == "sub-7":
            raise MemoryError("no memory")
        return manifest_of(item["scan"])

    def load_pairs(_, pairs, *__):
        [scan] = pairs["scan"]
        if scan == "sub-4":
            raise DataError(f"{layout.root}/volume: changed since preprocessing")
        return SimpleNamespace(items=[{"scan": scan}])

    card = SimpleNamespace(side=SideEncoder(), weights_sha256="0")
    predictor, rows = SimpleNamespace(card=card), (modality("T1w"), modality("FDG"))
    converter = Converter(predictor, None, None, layout, *rows, config.convert)
    scans = [f"sub-{number}" for number in range(1, 8)]
    splits = ["test", "test", "convert", "convert", "test", "train", "test"]
    pairs = pd.DataFrame({"scan": scans, "source": "t1.nii", "target": "", "split": splits})
    monkeypatch.setattr(Converter, "load", lambda *_, **__: converter)
    monkeypatch.setattr(Converter, "convert_if_needed", convert_if_needed)
    monkeypatch.setattr(scan_conversion, "load_pairs", load_pairs)
    monkeypatch.setattr(module, "usable_pairs", lambda _: pairs)
    earlier, kept = manifest_of("sub-2"), manifest_of("sub-7")
    # Its manifest is lost.
    unlisted = layout.synthetic(Scan("6"), *rows, "synth")
    unlisted.parent.mkdir(parents=True)
    unlisted.touch()
    module.convert(config, "dualflow", 0)
    rows = read_table(layout.conversions).set_index("scan")
    failed = dict.fromkeys(["sub-2", "sub-4", "sub-5", "sub-7"], "failed")
    assert rows["verdict"].to_dict() == failed | {"sub-3": "refused", "sub-1": "ok"}
    assert rows["reason"]["sub-3"] == "unlike; converted because a study converts every scan"
    assert "predicted spread" in rows["reason"]["sub-2"]
    assert rows["reason"]["sub-4"] == "volume: changed since preprocessing"
    assert rows["reason"]["sub-5"] == "source (1,) and mask (2,)"
    assert "sub-2: failed: " in capsys.readouterr().err
    assert not earlier.exists()
    assert kept.exists()
    assert not unlisted.exists()
    assert "convert" in verify_manifests(layout.root / "manifests", retry=True), "the next run tries again"
