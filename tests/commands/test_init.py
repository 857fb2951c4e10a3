"""`dualflow init`: modalities and files of a dataset, the written configuration, and errors."""

import re

import pytest
import yaml
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.config import load_config, parse_config


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Return a function that writes empty files for each subject; enter the dataset's parent folder."""

    def write(names, columns="age\tsex\tsite", subjects="123"):
        (tmp_path / "my study").mkdir()
        for label in subjects:
            for name in names:
                path = tmp_path / "my study" / f"sub-{label}" / name.format(f"sub-{label}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        rows = [f"sub-{label}\t" + "\t".join(["1"] * len(columns.split("\t"))) for label in subjects]
        (tmp_path / "my study" / "participants.tsv").write_text("\n".join([f"participant_id\t{columns}", *rows]) + "\n")

    monkeypatch.chdir(tmp_path)
    return write


def init(*arguments):
    return CliRunner().invoke(main, ["init", *arguments])


def test_the_written_configuration_loads(dataset, tmp_path):
    """It has modalities, side columns and file selections; the last line of the output is the next command."""
    dataset(["anat/{}_acq-a_T1w.nii.gz", "anat/{}_acq-b_T1w.nii.gz", "anat/{}_FLAIR.nii.gz",
             "pet/{}_trc-18FAV45_run-1_pet.nii.gz", "pet/{}_trc-18FAV45_run-2_pet.nii.gz"])  # fmt: skip
    done = init("my study")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == "3 subjects, 3 scans"
    assert "wrote my-study.yaml: T1w to AV45 (3 scans have both), side information: age, sex" in done.output
    assert "side column 'age' is taken as numbers: participants.json does not declare its type" in done.output
    assert done.output.splitlines()[-1] == "  dualflow run --config my-study.yaml --dry-run"
    config = load_config(tmp_path / "my-study.yaml")
    assert (config.study.name, str(config.study.bids)) == ("my-study", "my study")
    assert (config.study.source, config.study.target) == ("T1w", "AV45")
    assert config.study.side == ("age", "sex")
    assert config.study.where == {"T1w": {"acq": "a"}}
    assert config.study.runs == "last"
    assert config.preprocess.reference_region == "cerebellum"
    text = (tmp_path / "my-study.yaml").read_text()
    assert "# scans that have T1w and: FLAIR (3)" in text
    assert "# other columns: site" in text


@pytest.mark.parametrize("name", ["2024", "no", "1e3"])
def test_a_name_that_yaml_takes_for_another_type_is_quoted(dataset, tmp_path, name):
    """The name of the study is that of the folder."""
    dataset(["anat/{}_T1w.nii.gz", "pet/{}_trc-FDG_pet.nii.gz"], columns="age\tyes")
    (tmp_path / "my study").rename(tmp_path / name)
    assert init(name).exit_code == 0
    assert load_config(tmp_path / f"{name}.yaml").study.name == name


def test_sessions_and_modalities_without_pet(dataset, tmp_path):
    """Each session is a scan; without PET the target is another MR modality."""
    dataset(["ses-a/anat/{}_ses-a_T1w.nii.gz", "ses-a/anat/{}_ses-a_FLAIR.nii.gz", "ses-b/anat/{}_ses-b_T1w.nii.gz"])
    done = init("my study", "--out", "configs/x.yaml")
    assert done.output.splitlines()[0] == "3 subjects, 6 scans, 2 sessions"
    config = load_config(tmp_path / "configs/x.yaml")
    assert (config.study.source, config.study.target) == ("T1w", "FLAIR")
    assert config.preprocess.reference_region == "brain"


def test_the_tracer_with_most_pairs_is_the_target(dataset, tmp_path):
    """PET files without a known tracer are counted."""
    dataset(["anat/{}_T1w.nii.gz", "pet/{}_trc-PIB_pet.nii.gz", "pet/{}_trc-other_pet.nii.gz"])
    (tmp_path / "my study/sub-1/pet/sub-1_trc-FDG_pet.nii.gz").touch()
    done = init("my study")
    assert "  3 PET files name no known tracer; add trc-LABEL to their names" in done.output.splitlines()
    config = load_config(tmp_path / "my-study.yaml")
    assert config.study.target == "PIB"
    assert config.preprocess.reference_region == "cerebellar_grey"


def test_groups_are_balanced_and_their_analysis_is_a_comment(dataset, tmp_path):
    """A column of groups is balanced over the splits; without the # signs the analysis of all columns is one to run."""
    dataset(["anat/{}_T1w.nii.gz", "pet/{}_trc-FDG_pet.nii.gz"], columns="age\tdx")
    init("my study")
    text = (tmp_path / "my-study.yaml").read_text()
    config = parse_config(yaml.safe_load(re.sub(r"^# (?=impute|  )", "", text, flags=re.MULTILINE)))
    assert config.split.stratify == ("dx",)
    assert config.impute.analyses == {"main": "suvr ~ age + dx"}
    assert parse_config(yaml.safe_load(text)).impute is None


def test_modalities_in_different_sessions_are_joined(dataset, tmp_path):
    """Where MR and PET have different visits, the configuration pairs them, and says so."""
    dataset(["ses-mr/anat/{}_ses-mr_T1w.nii.gz", "ses-pet/pet/{}_ses-pet_trc-FDG_pet.nii.gz"])
    done = init("my study")
    assert "T1w to FDG (3 subjects have both, in different sessions)" in done.output
    study = load_config(tmp_path / "my-study.yaml").study
    assert study.join_sessions
    assert (study.source, study.target) == ("T1w", "FDG")


def test_files_are_chosen_by_the_label_of_most_scans(dataset, tmp_path):
    """The labels are those of the scans, and the summary says how many pairs the choice keeps."""
    dataset(["anat/{}_T1w.nii.gz", "pet/{}_trc-FDG_pet.nii.gz"])
    for label in ("mprage", "spgr"):
        (tmp_path / f"my study/sub-3/anat/sub-3_acq-{label}_T1w.nii.gz").touch()
    (tmp_path / "my study/sub-3/anat/sub-3_T1w.nii.gz").unlink()
    done = init("my study")
    assert "study.where keeps 2 of the 3 pairs" in done.output
    assert (
        "labels are T1w acq: none (2 scans), mprage (1 scans), spgr (1 scans)"
        in (tmp_path / "my-study.yaml").read_text()
    )
    assert load_config(tmp_path / "my-study.yaml").study.where == {"T1w": {"acq": ""}}


def test_a_file_is_overwritten_only_with_force(dataset, tmp_path):
    """Without --force, an existing file is unchanged."""
    dataset(["anat/{}_T1w.nii.gz", "pet/{}_trc-FDG_pet.nii.gz"])
    (tmp_path / "my-study.yaml").write_text("mine")
    done = init("my study")
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert (tmp_path / "my-study.yaml").read_text() == "mine"
    assert init("my study", "--force").exit_code == 0
    assert yaml.safe_load((tmp_path / "my-study.yaml").read_text())["study"]["target"] == "FDG"


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        ([], 3, "has no sub-* folder; name the root folder of a BIDS dataset"),
        (["anat/{}_bold.nii.gz"], 3, "no scan has a known modality, expected one of: T1w"),
        (["anat/{}_T1w.nii.gz"], 2, "no subject has two modalities (T1w 3)"),
        (["anat/{}_T1w.nii.gz", "pet/{}_pet.nii.gz"], 2, "3 PET files name no known tracer; add trc-LABEL"),
    ],
    ids=["no subjects", "no known modality", "no pair", "no tracer"],
)
def test_a_dataset_without_pairs_is_refused(dataset, tmp_path, names, code, message):
    """The error is one line, and no file is written."""
    dataset(names)
    done = init("my study")
    assert done.exit_code == code
    assert message in done.stderr
    assert not (tmp_path / "my-study.yaml").exists()
