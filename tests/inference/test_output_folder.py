"""Output folders that would overwrite an input or another dataset are refused."""

import json

import pytest

from dualflow.config import StudyConfig
from dualflow.data.derivative_dataset import describe_derivatives
from dualflow.errors import ConfigError
from dualflow.inference.output_folder import UNNAMED, check_files_outside, check_output, check_target, shared_name
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest


@pytest.fixture
def data(tmp_path):
    """A folder with a BIDS dataset, an image beside it, a model and an earlier conversion."""
    bids = tmp_path / "bids"
    (bids / "sub-1").mkdir(parents=True)
    # The simulated cohort is a raw dataset that dualflow wrote.
    description = {"Name": "x", "DatasetType": "raw", "GeneratedBy": [{"Name": "dualflow"}]}
    (bids / "dataset_description.json").write_text(json.dumps(description))
    (tmp_path / "t1.nii").touch()
    (tmp_path / "model").mkdir()
    describe_derivatives(Layout(tmp_path / "earlier", "."), "x", StudyConfig(name="t"))
    (tmp_path / "earlier" / "sub-1").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("bids", "new"),
        ("bids", "earlier"),
        ("bids", "bids/derivatives/dualflow"),
        ("t1.nii", "bids/derivatives/deep/er"),
        ("t1.nii", "t1"),
    ],
)
def test_separate_folders_and_derivatives_are_allowed(data, name, out):
    """New folders, earlier conversions and folders in `derivatives/` of a BIDS dataset."""
    check_output(data / out, [data / name], data / "model")


@pytest.mark.parametrize(
    ("name", "out", "words"),
    [
        ("bids", "bids", "is the input itself"),
        ("bids", "bids/../bids", "is the input itself"),
        ("bids", "bids/derivatives", "lies inside the input"),
        ("bids", "bids/sub-1/derivatives/x", "lies inside the input"),
        ("bids", "link/x", "lies inside the input"),
        ("bids", ".", "lies inside the output"),
        ("t1.nii", ".", "lies inside the output"),
        ("t1.nii", "bids", "did not write"),
        ("t1.nii", "bids/out", "lies inside the dataset"),
        ("t1.nii", "other", "of another dataset"),
        ("t1.nii", "study", "holds the results of a study"),
        ("t1.nii", "study/derivatives/dualflow", "holds the results of a study"),
        ("t1.nii", "model/x", "inside the folder of the model"),
        ("t1.nii", "t1.nii", "is a file"),
        ("t1.nii", "broken", "did not write"),
        ("t1.nii", "mine", "holds no conversion, but README"),
        ("t1.nii", "models", "holds no conversion, but seed-0"),
        ("t1.nii", "derivatives", "holds no conversion, but dualflow"),
    ],
)
def test_overlapping_folders_are_refused(data, name, out, words):
    """Links are followed, and nothing is written."""
    (data / "link").symlink_to(data / "bids")
    (data / "other" / "sub-9").mkdir(parents=True)
    (data / "study" / "index").mkdir(parents=True)
    (data / "study" / "index" / "pairs.tsv").touch()
    (data / "broken").mkdir()
    (data / "broken" / "dataset_description.json").write_text("[")
    for file in ("mine/README", "models/flow/seed-0/model.json", "derivatives/dualflow/dataset_description.json"):
        (data / file).parent.mkdir(parents=True)
        (data / file).write_text("{}")
    with pytest.raises(ConfigError, match=words):
        check_output(data / out, [data / name], data / "model")
    assert not (data / "new").exists()


def test_files_of_a_table_are_checked_too(data):
    """A table may name files anywhere below its folder."""
    check_files_outside(data / "out", [data / "t1.nii"])
    with pytest.raises(ConfigError, match="lies inside the output"):
        check_files_outside(data / "out", [data / "out" / "scans" / "t1.nii"])


def test_conversions_to_another_target_are_refused(tmp_path):
    """They would be replaced; scans that were only excluded have nothing to lose."""
    layout = Layout(tmp_path, ".")
    check_target(tmp_path, "AV45")
    config = {"source": "T1w", "target": "FDG"}
    write_manifest(layout.scan_manifest(Scan("1")), step="preprocess", outputs={}, inputs={}, config=config)
    check_target(tmp_path, "AV45")
    write_manifest(layout.manifest("convert/sub-1"), step="convert", outputs={}, inputs={}, config={})
    check_target(tmp_path, "FDG")
    with pytest.raises(ConfigError, match=r"holds conversions to FDG, but this model makes AV45; .* with --out"):
        check_target(tmp_path, "AV45")


def test_a_folder_of_several_datasets_is_named_after_none(data):
    """The description would give the scans of earlier commands the name of the last one's dataset."""
    assert shared_name(data / "new", "x") == "x"
    assert shared_name(data / "earlier", "x") == "x"
    assert shared_name(data / "earlier", "y") == UNNAMED
    describe_derivatives(Layout(data / "earlier", "."), UNNAMED, StudyConfig(name="t"))
    assert shared_name(data / "earlier", "x") == UNNAMED
