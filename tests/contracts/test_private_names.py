"""Names of source folders may identify a hospital or a person; no result holds them."""

import gzip
from types import SimpleNamespace

import pytest
from bad_studies import FDG, T1W, add, add_row, image_of, with_sessions, write_study

from dualflow.commands.make_index import make_index
from dualflow.commands.preprocess import finish_preprocess
from dualflow.commit import commit_json, commit_text
from dualflow.config import parse_config, public_values
from dualflow.data.index import read_pairs
from dualflow.data.quarantine import read_quarantine, without_folders
from dualflow.data.raw_scans import prepare_scan
from dualflow.data.scan_files import ScanFiles
from dualflow.imaging import outputs, pipeline
from dualflow.imaging.stopwatch import Stopwatch
from dualflow.inference.finished_scans import ScanState
from dualflow.layout import Scan

SECRET = "SECRETHOSPITAL_Doe_John"


def mentions(folder):
    """The files below a folder that hold the secret, unpacked if they are compressed; names count too."""
    files = [path for path in folder.rglob("*") if path.is_file() and "configs" not in path.parts]
    assert len(files) > 5
    texts = {path: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in files}
    return [path for path, text in texts.items() if SECRET.encode() in text or SECRET in str(path.relative_to(folder))]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study in a secret folder, with a scan for each way in which a path reaches a reason; imaging is a stub."""
    root = tmp_path / SECRET / "bids"
    write_study(root)
    (root.parent / "region.nii").write_bytes(image_of("region"))
    with_sessions(b"\xff\xfe\0")(root, "SessionsBinary")
    add(root, "BadSidecar", T1W, FDG)
    add_row(root, "BadSidecar", "70")
    (root / "sub-BadSidecar/sub-BadSidecar_T1w.json").write_text("{")

    def preprocess_pair(source, *_, **__):
        if "good2" in source.path.name:
            raise OSError(f"{source.path.resolve()}: cannot be read")
        return SimpleNamespace(record={"quality": {}}, clock=Stopwatch())

    def write_pair(_, layout, scan, *__):
        path = layout.derivatives / scan.folder / "volume.json"
        commit_json(path, {})
        return {"source": path}

    monkeypatch.setattr(pipeline, "preprocess_pair", preprocess_pair)
    monkeypatch.setattr(outputs, "write_pair", write_pair)
    values = {
        "study": {"name": "t", "bids": str(root), "results": str(tmp_path / "results"), "side": ["age"]},
        "preprocess": {"reference_region": str(root.parent / "region.nii")},
        "split": {"validation": 0, "test": 0},
    }
    return parse_config(values)


def test_no_result_names_the_source_folder(study, tmp_path, capsys):
    """Tables, manifests, reasons, descriptions and the records of finished scans hold relative paths only."""
    layout = study.layout
    make_index(study)
    for row in read_pairs(layout).to_dict("records"):
        files, scan = ScanFiles.of_row(study.bids, row, study.study), Scan.parse(row["scan"])
        excluded = prepare_scan(layout, scan, files, study.study, study.preprocess)
        ScanState.of(layout, scan, files, study.model_dump(mode="json")).remember(excluded)
    finish_preprocess(study)
    reasons = {row.scan: row.reason for row in read_quarantine(layout.quarantine)}
    assert reasons["sub-SessionsBinary_ses-1"].startswith("sub-SessionsBinary/sub-SessionsBinary_sessions.tsv: is not")
    assert reasons["sub-BadSidecar"].startswith("sub-BadSidecar_T1w.json: is not JSON")
    assert reasons["sub-good2"] == "sub-good2_T1w.nii: OSError: sub-good2_T1w.nii: cannot be read"
    assert mentions(tmp_path / "results") == []
    assert SECRET not in str(public_values(study))
    output = capsys.readouterr()
    assert SECRET not in output.out + output.err


def test_the_search_finds_names(tmp_path):
    """Also inside compressed files, so that a clean result means something."""
    for number in range(6):
        commit_text(tmp_path / f"{number}.txt", "text")
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(f"from {SECRET}".encode()))
    assert mentions(tmp_path) == [tmp_path / "x.nii.gz"]


def test_paths_become_relative(tmp_path, monkeypatch):
    """Of folders inside each other, the innermost counts; a relative folder is found in an absolute path."""
    monkeypatch.chdir(tmp_path)
    inner = tmp_path / "a" / "b"
    assert without_folders(f"{inner}/x.nii: bad, see {tmp_path}/a/y", tmp_path / "a", inner) == "x.nii: bad, see y"
    assert without_folders(f"{inner}/x.nii", inner.relative_to(tmp_path)) == "x.nii"
    assert without_folders("a/b", tmp_path) == "a/b"
