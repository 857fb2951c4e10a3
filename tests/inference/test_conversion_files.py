"""Files that conversions of a scan have written."""

import gzip

from dualflow.commit import commit_bytes, commit_text
from dualflow.inference.conversion_files import conversion_files
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.modalities import MODALITIES

T1W, FDG, AV45 = (MODALITIES[name] for name in ("T1w", "FDG", "AV45"))
SCAN = Scan("1")


def write(path, *, sidecar=True):
    """Write a file, and its sidecar unless it has none; return both paths."""
    commit_bytes(path, gzip.compress(b"voxels"))
    if not sidecar:
        return [path]
    commit_text(sidecar_path(path), "{}")
    return [path, sidecar_path(path)]


def test_all_files_of_a_conversion_are_listed_and_no_others(tmp_path):
    """Those of other scans, sessions, targets and steps are left out, and a sidecar without its volume counts."""
    layout = Layout(tmp_path, ".")
    descs = ("synth", "synthmean", "synthstd", "synth01", "synth123", "synthq05")
    written = [file for desc in descs for file in write(layout.synthetic(SCAN, T1W, FDG, desc))]
    written += write(layout.deviation(SCAN, T1W, T1W)) + write(layout.deviation(SCAN, T1W, MODALITIES["FLAIR"]))
    written += write(layout.region_table(SCAN, T1W, FDG))
    written += write(layout.figure(SCAN, "synth"), sidecar=False)
    layout.synthetic(SCAN, T1W, FDG, "synth01").unlink()
    written.remove(layout.synthetic(SCAN, T1W, FDG, "synth01"))
    for scan in (Scan("2"), Scan("11"), Scan("1", "2")):
        write(layout.synthetic(scan, T1W, FDG, "synth"))
        write(layout.figure(scan, "synth"), sidecar=False)
    write(layout.synthetic(SCAN, T1W, AV45, "synth"))
    write(layout.region_table(SCAN, T1W, AV45))
    write(layout.target_native(SCAN, T1W, FDG))
    write(layout.imputed_volume(SCAN, FDG, 1))
    write(layout.mask_native(SCAN, T1W))
    write(layout.figure(SCAN, "qc"), sidecar=False)
    assert conversion_files(layout, SCAN, T1W, FDG) == sorted(written)
