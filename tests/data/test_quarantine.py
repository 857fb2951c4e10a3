"""The table of excluded scans."""

import pandas as pd

from dualflow.data.quarantine import FACT, Quarantine, collect, read_quarantine, usable, write_quarantine
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest


def test_collect_merges_index_and_manifests(tmp_path):
    """Scans excluded by the index and by preprocessing form one sorted list."""
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
    """Tabs and line breaks of a reason become spaces."""
    path = tmp_path / "quarantine.tsv"
    write_quarantine(path, [Quarantine("sub-1", "preprocess", 'a\tb\n"c"')])
    assert [row.reason for row in read_quarantine(path)] == ['a b "c"']


def test_usable_pairs_have_no_excluded_scans():
    """Rows of excluded scans are dropped."""
    pairs = pd.DataFrame({"scan": ["sub-1", "sub-2"], "split": "train"})
    assert usable(pairs, [Quarantine("sub-1", "x", "y")])["scan"].tolist() == ["sub-2"]
