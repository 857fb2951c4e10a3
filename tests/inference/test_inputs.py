"""Inputs of a conversion as rows of scans."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from dualflow.commit import commit_json
from dualflow.digests import sha256
from dualflow.errors import ConfigError, DataError, PairingError
from dualflow.inference import inputs as inputs_module
from dualflow.inference.conversion_record import ORIGIN
from dualflow.inference.image_files import origin_of
from dualflow.inference.inputs import dataset_name, expand_inputs, resolve_inputs
from dualflow.inference.output_folder import UNNAMED
from dualflow.inference.selection import Selection
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest

SIDE = {
    "columns": [
        {"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 8.0},
        {"kind": "Categorical", "name": "sex", "levels": ["F", "M"]},
    ]
}


@pytest.fixture
def model_card(card):
    """A card with a number and a level as side information."""
    record = card.study.model_copy(update={"side": ("age", "sex")})
    return type(card).model_validate({**card.model_dump(), "side": SIDE, "study": record.model_dump()})


@pytest.fixture
def resolve(tmp_path, model_card):
    """Resolve inputs in `tmp_path` for an output beside them."""

    def run(*names, card=model_card, out="out", **selection):
        paths = expand_inputs([tmp_path / name for name in names])
        return resolve_inputs(
            paths, card, tmp_path / out, tmp_path / "model", tmp_path / out / "sourcedata", Selection(**selection)
        )

    return run


@pytest.fixture
def bids(tmp_path):
    """Subjects 1 (with two PET files), 2 (two sessions) and 3; 4 has no scan, 3 no row, and no one a sex."""
    root = tmp_path / "Smith^John"
    files = ["sub-1/anat/sub-1_T1w.nii", "sub-1/pet/sub-1_run-1_pet.nii", "sub-1/pet/sub-1_run-2_pet.nii"]
    files += [f"sub-2/ses-{label}/anat/sub-2_ses-{label}_T1w.nii" for label in "ab"]
    files += ["sub-3/anat/sub-3_T1w.nii"]
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "i2"), np.eye(4)), root / file)
    (root / "dataset_description.json").write_text('{"Name": "my  study", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\nsub-1\t71\nsub-2\tn/a\nsub-4\t60\n")
    return root


def image(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder / name


def test_links_to_one_file_are_images_of_their_own(tmp_path):
    """Stores of large files link equal scans of two people to one file; the same path is one image."""
    stored = image(tmp_path / "store", "object.nii")
    links = [tmp_path / f"sub-{label}_T1w.nii" for label in "12"]
    for link in links:
        link.symlink_to(stored)
    again = tmp_path / "store" / ".." / links[0].name
    assert expand_inputs([tmp_path / "sub-*.nii", again]) == links


def test_no_input_is_an_error():
    """Such as a pattern of Python's that fits no file."""
    with pytest.raises(DataError, match="there is no INPUT; name a NIfTI image"):
        expand_inputs([])


@pytest.mark.parametrize("kind", ["images", "dataset", "table"])
def test_a_label_too_long_for_outputs_is_set_aside(resolve, bids, tmp_path, kind):
    """The other scans stay; without any other, the conversion would have nothing to do."""
    label = "x" * 235
    if kind == "images":
        image(tmp_path, f"{label}.nii")
        image(tmp_path, "p1.nii")
        result = resolve(f"{label}.nii", "p1.nii")
    elif kind == "dataset":
        image(bids / f"sub-{label}/anat", f"sub-{label}_T1w.nii")
        result = resolve(bids.name)
    else:
        rows = "".join(f"{key}\tsub-1/anat/sub-1_T1w.nii\n" for key in (label, "p1"))
        (bids / "scans.tsv").write_text(f"subject\tT1w\n{rows}")
        result = resolve(f"{bids.name}/scans.tsv")
    assert [row.scan for row in result.quarantined] == [f"sub-{label}"]
    assert "shorten its subject or session label" in result.quarantined[0].reason
    assert len(result.rows) == (4 if kind == "dataset" else 1)


def test_images_and_patterns_become_rows(resolve, tmp_path):
    """Patterns expand in natural order, also in folders with spaces; a file counts once."""
    for name in ("p10.nii.gz", "p2.nii.gz", "other.txt"):
        image(tmp_path / "my däta", name)
    result = resolve("my däta/*.nii.gz", "my däta/p2.nii.gz", side={"age": "71"})
    assert result.rows["scan"].tolist() == ["sub-p10", "sub-p2"]
    assert result.rows["age"].tolist() == [71.0, 71.0]
    assert (result.root, result.rows["source"].tolist()) == (tmp_path / "my däta", ["p10.nii.gz", "p2.nii.gz"])
    assert (result.study.side, result.name) == (("age",), UNNAMED)
    assert result.notes == [
        "all 2 scans get the same side information: age 71",
        "side information unknown: sex (not given)",
    ]


def test_targets_of_a_dataset_are_ignored(resolve, bids):
    """Two PET files exclude no scan; people without scans or without a row, and unknown values, are mentioned."""
    result = resolve(bids.name)
    assert result.rows["scan"].tolist() == ["sub-1", "sub-2_ses-a", "sub-2_ses-b", "sub-3"]
    assert set(result.rows["target"]) == {""}
    assert not result.quarantined
    assert result.name == "my study"
    assert result.notes == [
        "subjects in participants.tsv without a T1w scan: 1 (4)",
        "subjects with a T1w scan but not in participants.tsv: 1 (3)",
        "side information unknown: age (3 of 4 scans), sex (no column in participants.tsv)",
    ]


def test_excluded_scans_are_kept_with_the_reason(resolve, bids):
    """Two T1w files exclude a scan, unless another one is selected."""
    (bids / "sub-1/anat/sub-1_acq-x_T1w.nii").touch()
    result = resolve(bids.name)
    assert [row.scan for row in result.quarantined] == ["sub-1"]
    assert "2 files fit T1w" in result.quarantined[0].reason
    assert resolve(bids.name, participants=["3"]).quarantined == []
    only = resolve(bids.name, participants=["1"])
    assert (len(only.rows), len(only.quarantined)) == (0, 1)


def test_a_table_is_resolved_without_targets(resolve, tmp_path):
    """Its folder's name is not the dataset's; files in the output are refused."""
    image(tmp_path / "data", "a.nii")
    table = tmp_path / "data" / "samples.tsv"
    table.write_text("subject\tT1w\tFDG\tage\tsex\nA\ta.nii\tgone.nii\t71\tF\nB\tgone.nii\tn/a\t3\tF\n")
    result = resolve("data/samples.tsv")
    assert result.rows["scan"].tolist() == ["sub-A"]
    assert [row.scan for row in result.quarantined] == ["sub-B"]
    assert (result.name, result.notes) == (UNNAMED, [])
    image(tmp_path / "data" / "out", "b.nii")
    table.write_text("subject\tT1w\nA\tout/b.nii\n")
    with pytest.raises(ConfigError, match="lies inside the output"):
        resolve("data/samples.tsv", out="data/out")


def test_dicom_folders_are_images(resolve, tmp_path, monkeypatch):
    """They lie in the folder for images from DICOM, and take side information as options."""
    image(tmp_path / "d", "x.dcm")
    monkeypatch.setattr(
        inputs_module, "convert_dicom", lambda _paths, target, _source: ({Scan("e"): target / "e.nii"}, [], ["e is 4"])
    )
    result = resolve("d", side={"age": 71, "sex": "F"})
    assert result.root == tmp_path / "out" / "sourcedata"
    assert result.rows[["scan", "age", "sex"]].to_numpy().tolist() == [["sub-e", 71.0, "F"]]
    assert result.notes == ["e is 4"]


@pytest.mark.parametrize(
    ("names", "selection", "error", "words"),
    [
        (["gone.nii"], {}, DataError, "gone.nii does not exist"),
        (["*.gone"], {}, DataError, "no file matches"),
        (["x" * 300], {}, DataError, "cannot be looked up .File name too long"),
        (["t1.nii", "Smith^John"], {}, ConfigError, "is an image, but .* is a BIDS dataset"),
        (["Smith^John", "again"], {}, ConfigError, "2 datasets, expected one"),
        (["empty"], {}, DataError, "no DICOM file"),
        (["t1.mgz"], {}, DataError, "expected a NIfTI image"),
        (["Smith^John"], {"participants": ["1", "sub-9"]}, ConfigError, "label 9: no such scan .* from: 1, 2, 3"),
        (["Smith^John"], {"side": {"age": 3}}, ConfigError, "--age is for single images"),
        (["Smith^John"], {"side": {"aeg": 3}}, ConfigError, "did you mean age"),
        (["Smith^John"], {"where": {"FDG": {"trc": "x"}}}, ConfigError, "where names FDG"),
        (["t1.nii"], {"participants": ["1"]}, ConfigError, "--participant-label selects files of a dataset"),
        (["t1.nii"], {"runs": "first"}, ConfigError, "--runs selects files of a dataset"),
    ],
)  # fmt: skip
def test_unusable_inputs_are_refused(resolve, bids, tmp_path, names, selection, error, words):
    """The error says what was expected, and nothing is written."""
    image(tmp_path, "t1.nii")
    image(tmp_path, "t1.mgz")
    (tmp_path / "again" / "sub-1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=words):
        resolve(*names, **selection)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["dataset", "table"])
def test_another_dataset_with_the_same_labels_is_refused(resolve, bids, tmp_path, kind):
    """Its people would replace others without a word; a changed image of the same dataset is converted again."""
    first, second = bids, tmp_path / "other"
    shutil.copytree(first, second)
    inputs = [folder.name for folder in (first, second)]
    if kind == "table":
        for name in ("a.tsv", "b.tsv"):
            (first / name).write_text("subject\tT1w\n1\tsub-1/anat/sub-1_T1w.nii\n")
        second, inputs = first, [f"{first.name}/a.tsv", f"{first.name}/b.tsv"]
    layout, earlier = Layout(tmp_path / "out", "."), resolve(inputs[0])
    digests = {"source": sha256(first / "sub-1/anat/sub-1_T1w.nii")}
    write_manifest(layout.scan_manifest(Scan("1")), step="preprocess", outputs={}, inputs=digests, config={})
    origin = origin_of(earlier.root, earlier.study)
    facts = {ORIGIN: origin}
    write_manifest(layout.manifest("convert/sub-1"), step="convert", outputs={}, inputs={}, config={}, facts=facts)
    assert first.name not in origin
    assert len(resolve(inputs[1]).rows)  # equal images are the same person
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), "i2"), np.eye(4)), second / "sub-1/anat/sub-1_T1w.nii")
    with pytest.raises(PairingError, match=r"holds sub-1 of another image than sub-1/anat/sub-1_T1w\.nii; choose"):
        resolve(inputs[1])
    assert len(resolve(inputs[0]).rows)


def test_a_flat_folder_of_images_is_no_dataset(resolve, tmp_path):
    """Files named `sub-*` are not the folders of a BIDS dataset; the error says how to name them."""
    image(tmp_path / "flat", "sub-1_T1w.nii.gz")
    with pytest.raises(DataError, match=r"no sub-\* folder .*; name its images, such as '.*/flat/\*\.nii\.gz'"):
        resolve("flat")
    image(tmp_path / "bids" / "sub-x" / "anat", "sub-x_T1w.nii.gz")
    with pytest.raises(DataError, match=r"name the dataset and --participant-label x$"):
        resolve("bids/sub-x")


def test_another_target_needs_another_output(resolve, model_card, tmp_path):
    """The error comes before any work, so that no volume of the earlier conversion is removed."""
    image(tmp_path, "t1.nii")
    layout = Layout(tmp_path / "out", ".")
    write_manifest(layout.scan_manifest(Scan("1")), step="preprocess", outputs={}, inputs={}, config={"target": "FDG"})
    write_manifest(layout.manifest("convert/sub-1"), step="convert", outputs={}, inputs={}, config={})
    commit_json(
        layout.root / "dataset_description.json", {"DatasetType": "derivative", "GeneratedBy": [{"Name": "dualflow"}]}
    )
    assert len(resolve("t1.nii").rows) == 1
    amyloid = model_card.study.model_copy(update={"target": "AV45"})
    with pytest.raises(ConfigError, match="holds conversions to FDG, but this model makes AV45"):
        resolve("t1.nii", card=model_card.model_copy(update={"study": amyloid}))


def test_a_pet_source_scaled_by_a_mask_of_the_study_is_refused(resolve, bids, model_card):
    """The card has the name of the mask alone, and a mask of that name may be another one."""

    def resolved(source, region):
        study = model_card.study.model_copy(update={"source": source, "target": "AV45"})
        preprocess = model_card.preprocess.model_copy(update={"reference_region": region})
        return resolve(bids.name, card=model_card.model_copy(update={"study": study, "preprocess": preprocess}))

    assert len(resolved("T1w", "mask.nii.gz").rows) == 4, "a target is not read"
    assert len(resolved("FDG", "pons").rows) == 0, "two runs"
    with pytest.raises(ConfigError, match=r"source FDG was divided by its mean in mask\.nii\.gz, a mask that"):
        resolved("FDG", "mask.nii.gz")


def test_a_model_of_several_sources_needs_a_dataset(resolve, model_card, tmp_path):
    """An image does not say which further images belong to it."""
    image(tmp_path, "t1.nii")
    record = model_card.study.model_copy(update={"extra_sources": ("FLAIR",)})
    with pytest.raises(ConfigError, match="needs T1w and FLAIR of each scan"):
        resolve("t1.nii", card=model_card.model_copy(update={"study": record}))


@pytest.mark.parametrize("content", [json.dumps({"Name": " "}), json.dumps({"Name": 3}), "[", "{}"])
def test_datasets_without_a_name_stay_unnamed(tmp_path, content):
    """The name of the folder is never used."""
    (tmp_path / "dataset_description.json").write_text(content)
    assert dataset_name(tmp_path) == UNNAMED


def test_masks_that_fit_no_scan_are_an_error(resolve, bids, tmp_path):
    """With masks of some scans a note says whose are missing."""
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(DataError, match=r"has no mask of any of 4 scans, expected names such as sub-1/anat/sub-1_"):
        resolve(bids.name, masks=masks)
    (masks / "sub-1" / "anat").mkdir(parents=True)
    (masks / "sub-1" / "anat" / "sub-1_desc-brain_mask.nii.gz").touch()
    note = resolve(bids.name, masks=masks).notes[-1]
    assert note.startswith(f"no mask in {masks} for 3 of 4 scans (sub-2_ses-a, ")
    alone = resolve(bids.name, masks=masks, participants=("3",))
    assert alone.notes[-1].startswith(f"no mask in {masks} for 1 of 1 scans (sub-3)"), "a command for each subject"


def test_dicom_in_folders_of_subjects_is_dicom(resolve, tmp_path, monkeypatch):
    """`sourcedata` has sub-* folders too; without any image they make no dataset."""
    (tmp_path / "src" / "sub-01").mkdir(parents=True)
    (tmp_path / "src" / "sub-01" / "1.dcm").touch()
    converted = []
    monkeypatch.setattr(inputs_module, "convert_dicom", lambda paths, *_: converted.extend(paths) or ({}, [], []))
    resolve("src")
    assert [path.name for path in converted] == ["src"]


def test_dicom_beside_the_folders_of_subjects_makes_no_dicom_of_a_dataset(tmp_path):
    """A dataset may keep its raw files in `sourcedata`, and have no image yet."""
    (tmp_path / "data" / "sub-01" / "anat").mkdir(parents=True)
    (tmp_path / "data" / "sourcedata").mkdir()
    (tmp_path / "data" / "sourcedata" / "1.dcm").touch()
    assert inputs_module._kind(tmp_path / "data") == "dataset"


def test_a_number_of_the_model_is_a_number_whatever_other_rows_hold(resolve, bids):
    """An age that is no number excludes its scan; it does not make categories of the others."""
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-1\t71\nsub-2\told\nsub-3\tvery old\n")
    scans = resolve(bids.name)
    assert scans.rows["age"].tolist() == [71.0]
    assert {row.scan for row in scans.quarantined} == {"sub-2_ses-a", "sub-2_ses-b", "sub-3"}


def test_a_column_that_no_training_scan_knows_is_unknown(resolve, bids, model_card):
    """Whether it holds numbers or levels: no scan is excluded for it."""
    (bids / "participants.tsv").write_text("participant_id\tage\tsex\nsub-1\t71\tF\nsub-2\t72\tM\n")
    unknown = {"columns": [{"kind": "Continuous", "name": "sex", "mean": None, "sd": 0.0}]}
    scans = resolve(bids.name, card=type(model_card).model_validate({**model_card.model_dump(), "side": unknown}))
    assert len(scans.rows) == 4
    assert not scans.quarantined
    assert "side information unknown: sex (4 of 4 scans)" in scans.notes


def test_a_column_in_other_letters_is_named(resolve, bids):
    """Columns of tables are taken as they are spelt."""
    (bids / "participants.tsv").write_text("participant_id\tAge\nsub-1\t71\n")
    assert "side column 'age' is unknown: participants.tsv has 'Age'; rename it there" in resolve(bids.name).notes
