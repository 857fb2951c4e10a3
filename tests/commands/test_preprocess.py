"""The tables of a preprocessed study."""

from dualflow.commands.preprocess import finish_preprocess
from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.data.quarantine import Quarantine, read_quarantine, write_quarantine
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.modalities import modality


def test_a_scan_that_left_the_index_loses_its_volumes(tmp_path):
    """As its synthetic volumes do in the conversion; the row of its exclusion stays."""
    config = parse_config({"study": {"name": "t", "bids": str(tmp_path), "results": str(tmp_path / "results")}})
    layout = config.layout
    commit_text(layout.pairs, "scan\tsubject\tsession\tsource\ttarget\tsplit\nsub-1\t1\tn/a\ta\tb\ttrain\n")
    excluded = Quarantine("sub-2", "review", "moved")
    write_quarantine(layout.index_quarantine, [excluded])
    # Its manifest was lost, as is that of a scan one of whose files was changed.
    unlisted = [
        layout.synthetic(Scan("2"), modality("T1w"), modality("FDG"), "synth"),
        layout.on_grid(Scan("2"), modality("T1w")),
        layout.imputed_volume(Scan("2"), modality("FDG"), 1),
        layout.edit(Scan("2"), "age") / "regions.tsv",
    ]
    listed = layout.imputed_volume(Scan("1"), modality("FDG"), 1)
    for file in (*unlisted, listed):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    volumes = {label: layout.derivatives / f"sub-{label}/volume" for label in "12"}
    for label, volume in volumes.items():
        commit_text(volume, "voxels")
        manifest = layout.scan_manifest(Scan(label))
        write_manifest(manifest, step="preprocess", outputs={"source": volume}, inputs={}, config={})
    finish_preprocess(config)
    assert [volume.exists() for volume in volumes.values()] == [True, False]
    assert [layout.scan_manifest(Scan(label)).exists() for label in volumes] == [True, False]
    assert listed.exists()
    assert not any(file.exists() for file in unlisted)
    assert read_quarantine(layout.quarantine) == [excluded]
