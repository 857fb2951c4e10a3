import pandas as pd

from dualflow.data.quarantine import FACT, Quarantine, collect, read_quarantine, usable, write_quarantine
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest


def test_collect_merges_index_and_manifests(tmp_path):
    """Scans excluded by the index and by preprocessing form one sorted list; usable scans are not in it."""
    layout = Layout(tmp_path)
    early = Quarantine("sub-9", "pairing", "no source")
    late = Quarantine("sub-1", "preprocess", "constant image")
    write_quarantine(layout.index_quarantine, [early])
    for scan, facts in (("sub-1", {FACT: late.fact()}), ("sub-2", {"quality": 1.0})):
        write_manifest(
            layout.scan_manifest(Scan.parse(scan)), step="preprocess", outputs={}, inputs={}, config={}, facts=facts
        )
    assert collect(layout, ["sub-1", "sub-2", "sub-3"]) == [late, early]


def test_reasons_stay_on_one_line(tmp_path):
    """A reason with tabs, quotes and line breaks comes back as one line."""
    path = tmp_path / "quarantine.tsv"
    write_quarantine(path, [Quarantine("sub-1", "preprocess", 'a\tb\n"c"')])
    assert [row.reason for row in read_quarantine(path)] == ['a b "c"']


def test_usable_leaves_out_excluded_scans():
    """Only rows of scans that are not excluded remain."""
    pairs = pd.DataFrame({"scan": ["sub-1", "sub-2"], "split": "train"})
    assert usable(pairs, [Quarantine("sub-1", "x", "y")])["scan"].tolist() == ["sub-2"]
