"""Conversion of one scan of many."""

import errno
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from dualflow.commit import commit_text
from dualflow.config import ConvertConfig, StudyConfig
from dualflow.data.quarantine import Quarantine
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import CommitError, DataError, ShapeError
from dualflow.inference import scan_conversion
from dualflow.inference.convert import Converter
from dualflow.inference.scan_conversion import convert_scan
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Convert a scan with a stand-in for reading it, one for the conversion, and the table of an unfinished one."""
    predictor = SimpleNamespace(card=SimpleNamespace(side=SideEncoder()))
    rows, study = (modality("T1w"), modality("FDG")), StudyConfig(name="t", source="T1w", target="FDG")
    converter = Converter(predictor, None, None, Layout(tmp_path, "."), *rows, ConvertConfig())
    table = converter.layout.region_table(Scan("1"), *rows)

    def run(read=lambda: None, convert=lambda: None):
        commit_text(table, "mean")

        def load_pairs(_, pairs, *__):
            assert pairs["target"].tolist() == [""]
            read()
            return SimpleNamespace(items=[{}])

        monkeypatch.setattr(scan_conversion, "load_pairs", load_pairs)
        monkeypatch.setattr(Converter, "convert_if_needed", lambda *_: convert())
        row = pd.DataFrame([{"scan": "sub-1", "source": "t1.nii", "target": "pet.nii"}])
        return convert_scan(converter, row, study, tmp_path / "t1.nii", folders=[tmp_path]), table.exists()

    return run


def raising(error):
    """A function that raises an error."""

    def fail():
        raise error

    return fail


@pytest.mark.parametrize("stage", ["read", "convert"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [(DataError("it changed"), "it changed"), (ShapeError("size 3"), "size 3"), (ValueError("odd"), "ValueError: odd")],
)
def test_any_error_fails_the_scan_and_leaves_no_file(attempt, stage, error, reason):
    """It may occur while the preprocessed volumes are read, or later."""
    assert attempt(**{stage: raising(error)}) == (Quarantine("sub-1", "convert", reason), False)


@pytest.mark.parametrize("stage", ["read", "convert"])
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENODEV, "no disk"), torch.OutOfMemoryError("CUDA")])
def test_a_shortage_of_the_machine_leaves_the_files(attempt, stage, error):
    """Another attempt may find the disk or the memory; the files stay if the error has a cause of this kind, too."""
    caused = DataError("unreadable")
    caused.__cause__ = error
    for failure in (error, caused):
        result, exists = attempt(**{stage: raising(failure)})
        assert isinstance(result, Quarantine)
        assert exists


@pytest.mark.parametrize("stage", ["read", "convert"])
def test_an_output_that_cannot_be_written_is_no_defect_of_the_scan(attempt, stage):
    """It stops the conversion of all scans."""
    with pytest.raises(CommitError):
        attempt(**{stage: raising(CommitError("disk full"))})


def test_a_reason_names_no_folder(attempt, tmp_path):
    """Names of folders may identify people."""
    assert attempt(raising(DataError(f"{tmp_path / 'x.nii'}: changed")))[0].reason == "x.nii: changed"


def test_a_converted_scan_has_its_manifest(attempt, tmp_path):
    """Its files stay."""
    assert attempt(convert=lambda: tmp_path) == (tmp_path, True)
