"""The index of a BIDS dataset: pairs, exclusions and errors."""

import json
import random

import pandas as pd
import pytest

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.index import build_index, list_scans, pair_scans, read_pairs, side_columns
from dualflow.data.quarantine import read_quarantine
from dualflow.data.study_summary import study_summary
from dualflow.errors import ConfigError, DataError
from dualflow.layout import Layout

STUDY = StudyConfig(name="t")
TRAINING_ONLY = SplitConfig(validation=0, test=0)


def reasons(index) -> dict[str, str]:
    return {row.scan: row.reason for row in index.quarantined}


def test_pairs_by_subject_and_session(make_bids, pair_files):
    """Source and target of a pair have the same session, and paths are relative to the dataset."""
    root = make_bids([*pair_files("01", "a"), "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz", *pair_files("2")])
    pairs = build_index(root, STUDY, TRAINING_ONLY).pairs
    assert pairs["scan"].tolist() == ["sub-01_ses-a", "sub-01_ses-b", "sub-2"]
    assert pairs["target"].tolist() == [pair_files("01", "a")[1], "", pair_files("2")[1]]
    assert pairs["source"].tolist()[0] == pair_files("01", "a")[0]
    assert pairs["split"].tolist() == ["train", "convert", "train"]
    assert pairs["session"].tolist() == ["a", "b", None]


@pytest.mark.parametrize("name", ["ds000001-1.0.0", "study[1]", ".hidden"])
def test_any_folder_name_is_indexed(make_bids, pair_files, name):
    """The folder name of a dataset is arbitrary, such as that of an OpenNeuro download."""
    assert len(build_index(make_bids(pair_files("1"), name=name), STUDY, TRAINING_ONLY).pairs) == 1


def test_derivatives_and_other_files_are_ignored(make_bids, pair_files):
    """Derivatives, sidecars, other modalities and other tracers are no scans of the study."""
    extra = [
        "derivatives/x/sub-2/anat/sub-2_T1w.nii.gz",
        "sub-1/anat/sub-1_T1w.json",
        "sub-1/anat/sub-1_FLAIR.nii.gz",
        "sub-1/pet/sub-1_trc-AV45_pet.nii.gz",
    ]
    index = build_index(make_bids([*pair_files("1"), *extra]), STUDY, TRAINING_ONLY)
    assert index.pairs["scan"].tolist() == ["sub-1"]
    assert index.pairs["target"].tolist() == [pair_files("1")[1]]
    assert index.quarantined == []


def test_a_session_with_the_target_alone_is_missing_a_source(make_bids, pair_files):
    """Usual in longitudinal datasets, it is counted and not excluded; a split and a reviewer may name its subject."""
    alone = [pair_files("2", "p")[1], pair_files("3", "c")[1], pair_files("3", "d")[1]]
    root = make_bids([*pair_files("1"), *pair_files("3", "a"), pair_files("3", "b")[0], *alone])
    split = SplitConfig(validation=0, test_subjects=("2", "3"))
    table = root / "exclusions.tsv"
    table.write_text("subject\tsession\tdecision\treason\n2\tp\tkeep\tn/a\n")
    index = build_index(root, StudyConfig(name="t", exclusions=table), split)
    assert index.quarantined == []
    assert index.pairs["scan"].tolist() == ["sub-1", "sub-3_ses-a", "sub-3_ses-b"]
    assert list(index.lone_targets) == ["sub-2_ses-p", "sub-3_ses-c", "sub-3_ses-d"]
    assert index.missing["scans with FDG but no T1w"] == ["sub-2_ses-p"]
    assert index.missing["scans with FDG but no T1w, which another session has"] == ["sub-3_ses-c", "sub-3_ses-d"]
    with pytest.raises(DataError, match=r"none of 1 scans with T1w has FDG too \(3 sessions have it alone"):
        build_index(make_bids([*alone, pair_files("1")[0]], name="b"), STUDY, TRAINING_ONLY)


def test_decisions_on_a_session_with_the_target_alone(make_bids, pair_files):
    """An excluded one is counted once; without its target none is to convert. With no scan at all, they are named."""
    root = make_bids([*pair_files("1"), pair_files("2", "p")[1], pair_files("3")[1]])
    table = root / "exclusions.tsv"
    table.write_text("subject\tsession\tdecision\treason\n2\tp\texclude\tmotion\n3\tn/a\texclude-target\tmotion\n")
    index = build_index(root, StudyConfig(name="t", exclusions=table), TRAINING_ONLY)
    assert [row.scan for row in index.quarantined] == ["sub-2_ses-p"]
    assert list(index.lone_targets) == ["sub-3"]
    assert not index.unused_targets
    with pytest.raises(DataError, match=r"no usable T1w scan \(sessions with FDG alone: 1\)"):
        build_index(make_bids([pair_files("1")[1]], name="b"), STUDY, TRAINING_ONLY)


def test_a_session_whose_source_is_unusable_is_excluded(make_bids, pair_files):
    """It has a source that somebody can repair, unlike a session with the target alone."""
    root = make_bids([*pair_files("1"), *pair_files("2"), *pair_files("3")])
    (root / pair_files("2")[0]).unlink()
    (root / pair_files("2")[0]).symlink_to("gone.nii.gz")
    (root / pair_files("3")[0]).rename(root / pair_files("3")[0].replace("T1w", "t1w"))
    assert list(reasons(build_index(root, STUDY, TRAINING_ONLY))) == ["sub-2", "sub-3"]


@pytest.mark.parametrize(
    ("second", "remedy"),
    [
        ("sub-1/anat/sub-1_run-2_T1w.nii.gz", "study.runs or study.where, such as {T1w: {run: '2'}}"),
        ("sub-1/anat/sub-1_acq-x_run-2_T1w.nii.gz", "study.where, such as {T1w: {acq: 'x'}}"),
        ("sub-1/anat/sub-1_T1w.nii", "keep one"),
    ],
)
def test_an_ambiguous_scan_is_excluded(make_bids, pair_files, second, remedy):
    """Of two matching files none is chosen by default; the reason says how to choose."""
    index = build_index(make_bids([*pair_files("1"), *pair_files("2"), second]), STUDY, TRAINING_ONLY)
    assert index.pairs["scan"].tolist() == ["sub-2"]
    assert remedy in reasons(index)["sub-1"]
    assert second.split("/")[-1] in reasons(index)["sub-1"]


def test_an_ambiguous_target_leaves_a_scan_to_convert(make_bids, pair_files):
    """Of two matching targets none is used; the source stays, and the reason says how to choose."""
    second = "sub-1/pet/sub-1_trc-18FFDG_pet.nii.gz"
    index = build_index(make_bids([*pair_files("1"), *pair_files("2"), second]), STUDY, TRAINING_ONLY)
    assert index.pairs["split"].tolist() == ["convert", "train"]
    assert index.quarantined == []
    assert "study.where, such as {FDG: {trc: '18FFDG'}}" in index.unused_targets["sub-1"]
    assert second.split("/")[-1] in index.unused_targets["sub-1"]


def test_ambiguous_targets_alone_are_excluded(make_bids, pair_files):
    """A scan without a source has nothing to convert, and a study without usable targets says why."""
    files = ["sub-2/pet/sub-2_trc-FDG_run-1_pet.nii.gz", "sub-2/pet/sub-2_trc-FDG_run-2_pet.nii.gz"]
    index = build_index(make_bids([*pair_files("1"), *files]), STUDY, TRAINING_ONLY)
    assert "2 files fit FDG" in reasons(index)["sub-2"]
    root = make_bids([*pair_files("1"), "sub-1/pet/sub-1_trc-FDG_run-2_pet.nii.gz"], name="b")
    with pytest.raises(DataError, match=r"none of 1 scans with T1w has FDG too \(sub-1: 2 files fit FDG"):
        build_index(root, STUDY, TRAINING_ONLY)


@pytest.mark.parametrize("name", ["sub-2_trc-FDG_pet.NII.GZ", "sub-2_trc-FDG_PET.nii.gz"])
def test_names_in_another_case_are_no_missing_targets(make_bids, pair_files, name):
    """A measured PET must not count as missing for its spelling: the scan is excluded with the remedy."""
    root = make_bids([*pair_files("1"), "sub-2/anat/sub-2_T1w.nii.gz", f"sub-2/pet/{name}"])
    index = build_index(root, STUDY, TRAINING_ONLY)
    assert index.pairs["scan"].tolist() == ["sub-1"]
    assert f"{name}: names end in _pet.nii or _pet.nii.gz, in this case; rename it" in reasons(index)["sub-2"]


CHOICES = [
    ({"where": {"T1w": {"acq": "a"}}, "runs": "first"}, "sub-1_acq-a_run-2_T1w.nii"),
    ({"where": {"T1w": {"acq": "a"}}, "runs": "last"}, "sub-1_acq-a_run-10_T1w.nii"),
    ({"where": {"T1w": {"acq": "a", "run": "10"}}}, "sub-1_acq-a_run-10_T1w.nii"),
    ({"where": {"T1w": {"acq": ""}}}, "sub-1_T1w.nii"),
    ({"runs": "first"}, None),
    ({"where": {"T1w": {"acq": "a"}}}, None),
]


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
def test_files_are_chosen_by_entities_and_runs(make_bids, choice, expected):
    """Entities select files; `runs` selects by run number among files that differ in nothing else."""
    names = ["sub-1_T1w.nii", "sub-1_acq-a_run-2_T1w.nii", "sub-1_acq-a_run-10_T1w.nii", "sub-1_acq-b_T1w.nii"]
    # Two more subjects, so that every choice matches a usable scan.
    names = [*names, "sub-2_acq-a_T1w.nii", "sub-3_T1w.nii"]
    root = make_bids([f"{name[:5]}/anat/{name}" for name in names])
    index = pair_scans(root, StudyConfig(name="t", **choice))
    chosen = dict(zip(index.pairs["scan"], index.pairs["source"], strict=True)).get("sub-1")
    assert (chosen and chosen.split("/")[-1]) == expected
    assert ("sub-1" in reasons(index)) == (expected is None)


def test_scans_without_a_fitting_file_are_not_dropped_silently(make_bids, pair_files):
    """Without a fitting source a scan is excluded, without a fitting target it is one to convert; both say why."""
    files = ["sub-2/anat/sub-2_acq-a_T1w.nii.gz", "sub-2/pet/sub-2_trc-FDG_rec-x_pet.nii.gz", *pair_files("3")]
    files += ["sub-1/anat/sub-1_acq-a_T1w.nii.gz", "sub-1/pet/sub-1_trc-FDG_pet.nii.gz"]
    chosen = StudyConfig(name="t", where={"T1w": {"acq": "a"}, "FDG": {"rec": ""}})
    index = build_index(make_bids(files), chosen, TRAINING_ONLY)
    assert index.pairs[["scan", "split"]].to_numpy().tolist() == [["sub-1", "train"], ["sub-2", "convert"]]
    assert "no T1w file fits study.where or --where (acq: a): sub-3_T1w.nii.gz" in reasons(index)["sub-3"]
    assert "no FDG file fits study.where or --where (rec: none)" in index.unused_targets["sub-2"]
    assert index.lone_targets == []


def test_an_unfit_visit_does_not_prevent_joined_sessions(make_bids):
    """The PET of a visit whose own MR does not fit belongs to the MR that does."""
    files = ["anat/sub-1_ses-a_acq-a_T1w.nii.gz", "anat/sub-1_ses-b_T1w.nii.gz", "pet/sub-1_ses-b_trc-FDG_pet.nii.gz"]
    root = make_bids([f"sub-1/ses-{name.split('ses-')[1][0]}/{name}" for name in files])
    chosen = StudyConfig(name="t", where={"T1w": {"acq": "a"}}, join_sessions=True)
    index = build_index(root, chosen, TRAINING_ONLY)
    assert index.pairs[["scan", "split"]].to_numpy().tolist() == [["sub-1_ses-a", "train"]]
    assert not index.quarantined


def test_a_study_without_pairs_says_how_to_join_sessions(make_bids):
    """The reasons of excluded PET sessions are in the error and in the table of excluded scans."""
    files = [f"sub-{label}/ses-mr/anat/sub-{label}_ses-mr_T1w.nii.gz" for label in "123"]
    files += [f"sub-{label}/ses-pet/pet/sub-{label}_ses-pet_trc-FDG_pet.nii.gz" for label in "123"]
    root = make_bids(files)
    with pytest.raises(DataError, match=r"has FDG too \(the first of 3 excluded: .*study\.join_sessions: true"):
        build_index(root, STUDY, TRAINING_ONLY, quarantine=root / "quarantine.tsv")
    assert len(read_quarantine(root / "quarantine.tsv")) == 3


def test_people_who_are_named_for_a_split_and_have_no_pair_are_listed(make_bids, pair_files):
    """They would drop out of the test set without a word."""
    root = make_bids([*pair_files("1"), *pair_files("2"), "sub-3/anat/sub-3_T1w.nii.gz"])
    index = build_index(root, STUDY, SplitConfig(validation=0, test_subjects=("2", "sub-3")))
    assert index.missing["subjects that section split names, without a pair"] == ["3"]
    assert "subjects that section split names, without a pair: 1" in study_summary(index, STUDY, SplitConfig())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"T1w": {"acq": "y"}}, "no T1w file has acq-y; choose from: acq-x, rec-z"),
        ({"T1w": {"aqc": "x"}}, "no T1w file has aqc-x; choose from: acq-x, rec-z"),
        ({"T1w": {"acq": "x", "rec": "z"}}, "no T1w file has rec-z; choose from: acq-x"),
        ({"FDG": {"trc": ""}}, "no FDG file is without trc; choose from: trc-FDG"),
    ],
)
def test_unknown_entities_are_an_error(make_bids, pair_files, where, message):
    """The error for a misspelt entity or label lists the existing ones."""
    files = ["sub-2/anat/sub-2_acq-x_T1w.nii.gz", "sub-3/anat/sub-3_rec-z_T1w.nii.gz"]
    with pytest.raises(ConfigError) as caught:
        pair_scans(make_bids([*pair_files("1"), *files]), StudyConfig(name="t", where=where))
    assert message in str(caught.value)


def test_files_without_a_tracer_can_be_selected(make_bids):
    """With study.where, PET files without a tracer are the target although other files name one."""
    files = ["sub-1/anat/sub-1_T1w.nii", "sub-1/pet/sub-1_pet.nii", "sub-1/pet/sub-1_trc-AV45_pet.nii"]
    root = make_bids(files)
    chosen = StudyConfig(name="t", where={"FDG": {"trc": ""}})
    assert pair_scans(root, chosen).pairs["target"].tolist() == ["sub-1/pet/sub-1_pet.nii"]


def test_another_label_of_a_tracer_can_be_selected(make_bids):
    """Datasets spell tracers differently; without study.where the error names the labels that the dataset has."""
    labels = ["florbetapir", "florbetapir", "FDG"]
    files = [f"sub-{number}/anat/sub-{number}_T1w.nii" for number in range(3)]
    files += [f"sub-{number}/pet/sub-{number}_trc-{label}_pet.nii" for number, label in enumerate(labels)]
    root = make_bids(files)
    chosen = StudyConfig(name="t", target="AV45", where={"AV45": {"trc": "florbetapir"}})
    index = build_index(root, chosen, TRAINING_ONLY)
    assert index.pairs["target"].tolist() == [*files[3:5], ""]
    with pytest.raises(DataError, match=r"none of 3 scans .* has AV45 too.*FDG, florbetapir.*{trc: florbetapir}"):
        build_index(root, StudyConfig(name="t", target="AV45"), TRAINING_ONLY)
    with pytest.raises(ConfigError, match="no AV45 file has trc-amyvid; choose from: trc-FDG, trc-florbetapir"):
        build_index(root, StudyConfig(name="t", target="AV45", where={"AV45": {"trc": "amyvid"}}), TRAINING_ONLY)


def test_further_sources_are_columns(make_bids, pair_files):
    """Source columns precede side columns; a scan without a source is excluded, and the reason names the file."""
    files = [*pair_files("1"), "sub-1/anat/sub-1_FLAIR.nii.gz", *pair_files("2"), "sub-3/anat/sub-3_FLAIR.nii.gz"]
    study = StudyConfig(name="t", extra_sources=("FLAIR",), side=("source_site",))
    index = build_index(make_bids(files, "participant_id\tsource_site\n1\t7\n"), study, TRAINING_ONLY)
    assert index.pairs.columns.tolist()[5:] == ["split", "source_FLAIR", "source_site"]
    assert index.pairs["source_FLAIR"].tolist() == ["sub-1/anat/sub-1_FLAIR.nii.gz"]
    assert side_columns(index.pairs) == ["source_site"]
    assert "has T1w and FDG but no FLAIR; add sub-2/anat/sub-2_FLAIR.nii.gz" in reasons(index)["sub-2"]
    assert "has FLAIR but no T1w" in reasons(index)["sub-3"]


def test_a_missing_tracer_must_be_unambiguous(make_bids):
    """A PET file without trc- is the target in a dataset of one tracer, and not used in one with another tracer."""
    files = ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/pet/sub-1_pet.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz"]
    assert build_index(make_bids(files), STUDY, TRAINING_ONLY).pairs["split"].tolist() == ["train", "convert"]
    mixed = pair_scans(make_bids([*files, "sub-2/pet/sub-2_trc-AV45_pet.nii.gz"], name="mixed"), STUDY)
    assert mixed.pairs["target"].tolist() == ["", ""]
    assert "AV45" in mixed.unused_targets["sub-1"]


def test_a_sidecar_names_the_tracer_of_a_file_that_does_not(make_bids):
    """BIDS requires TracerName, not trc-. PET of another tracer is not learnt as the target."""
    labels = {"1": "[18F]FDG", "2": "PIB", "3": "raclopride", "4": None}
    root = make_bids(
        [f"sub-{key}/{file}" for key in labels for file in (f"anat/sub-{key}_T1w.nii", f"pet/sub-{key}_pet.nii")]
    )
    for key, name in labels.items():
        if name:
            (root / f"sub-{key}/pet/sub-{key}_pet.json").write_text(json.dumps({"TracerName": name}))
    index = pair_scans(root, STUDY)
    assert index.pairs.set_index("scan")["target"].tolist() == ["sub-1/pet/sub-1_pet.nii", "", "", ""]
    assert "has the tracer 'raclopride', which is that of no modality" in index.unused_targets["sub-3"]
    assert "names no tracer in a dataset that also has PIB, raclopride" in index.unused_targets["sub-4"]
    amyloid = pair_scans(root, StudyConfig(name="t", target="PIB"))
    assert amyloid.pairs["target"].tolist() == ["", "sub-2/pet/sub-2_pet.nii", "", ""]


def test_a_misspelt_tracer_is_named(make_bids):
    """A scan with a target that is not recognised would otherwise be imputed without a word."""
    files = ["sub-1/anat/sub-1_T1w.nii", "sub-2/anat/sub-2_T1w.nii"]
    root = make_bids([*files, "sub-1/pet/sub-1_trc-FDG_pet.nii", "sub-2/pet/sub-2_trc-fluoroglucose_pet.nii"])
    reason = pair_scans(root, STUDY).unused_targets["sub-2"]
    assert "'fluoroglucose', which is that of no modality; if it is FDG, write trc-FDG in its name" in reason


def test_links_out_of_the_dataset_are_excluded(make_bids, pair_files, tmp_path):
    """Links that lead out of the dataset or nowhere exclude the scan; links inside the dataset are followed."""
    root = make_bids([*pair_files("1"), *pair_files("3")])
    outside = tmp_path / "outside" / "sub-2"
    (outside / "anat").mkdir(parents=True)
    (outside / "anat" / "sub-2_T1w.nii.gz").touch()
    (root / "sub-2").symlink_to(outside)
    (root / "store").mkdir()
    (root / pair_files("3")[0]).rename(root / "store" / "annexed")
    (root / pair_files("3")[0]).symlink_to(root / "store" / "annexed")
    (root / "sub-4" / "anat").mkdir(parents=True)
    (root / "sub-4" / "anat" / "sub-4_T1w.nii.gz").symlink_to(root / "store" / "gone")
    index = build_index(root, STUDY, TRAINING_ONLY)
    assert index.pairs["scan"].tolist() == ["sub-1", "sub-3"]
    assert "leads out of the dataset" in reasons(index)["sub-2"]
    assert "not there" in reasons(index)["sub-4"]


def test_links_into_the_annex_of_the_dataset_above_are_followed(make_bids, pair_files):
    """In a DataLad dataset with its BIDS data in `rawdata`; nothing else outside of it, and no other annex."""
    root = make_bids([], name="super/rawdata")
    targets = {
        "1": "super/.git/annex/objects/a", "2": "super/.git/annex/objects/b", "3": "super/.git/config",
        "4": "super/other.nii.gz", "5": ".git/annex/objects/c", "6": "super/.git/annex/objects/gone",
    }  # fmt: skip
    for label, target in targets.items():
        file, place = root / pair_files(label)[0], root.parents[1] / target
        for folder in (file.parent, place.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if label != "6":
            place.write_text(label)
        file.symlink_to(place)
    index = pair_scans(root, STUDY)
    assert index.pairs["scan"].tolist() == ["sub-1", "sub-2"]
    assert [scan for scan, reason in reasons(index).items() if "leads out" in reason] == ["sub-3", "sub-4", "sub-5"]
    assert "fetch the file" in reasons(index)["sub-6"]


def test_links_into_the_annex_of_a_subdataset_are_followed(make_bids, pair_files):
    """Its `.git` is a link into that of the dataset above."""
    root = make_bids([], name="super/rawdata")
    annex = root.parent / ".git/modules/rawdata/annex/objects"
    annex.mkdir(parents=True)
    (annex / "a").write_text("1")
    (root / ".git").symlink_to("../.git/modules/rawdata")
    file = root / pair_files("1")[0]
    file.parent.mkdir(parents=True)
    file.symlink_to(root / ".git/annex/objects/a")
    assert pair_scans(root, STUDY).pairs["scan"].tolist() == ["sub-1"]


def test_invalid_names_are_excluded(make_bids, pair_files):
    """A file in another subject's folder and an invalid label exclude only their scan."""
    wrong = ["sub-2/anat/sub-3_T1w.nii.gz", "sub-4-b/anat/sub-4-b_T1w.nii.gz"]
    index = build_index(make_bids([*pair_files("1"), *wrong]), STUDY, TRAINING_ONLY)
    assert index.pairs["scan"].tolist() == ["sub-1"]
    assert set(reasons(index)) == {"sub-2", "sub-4-b"}


def test_dataset_without_scans_is_an_error(make_bids, pair_files, tmp_path):
    """The error says whether the folder, all subjects or the source modality is missing."""
    with pytest.raises(DataError, match="no such folder"):
        pair_scans(tmp_path / "nowhere", STUDY)
    with pytest.raises(DataError, match=r"no sub-\* folder"):
        pair_scans(make_bids([]), STUDY)
    with pytest.raises(DataError, match="no usable FLAIR"):
        pair_scans(make_bids(pair_files("1"), name="t1"), StudyConfig(name="t", source="FLAIR"))


def test_reasons_are_written_if_no_scan_is_usable(make_bids, tmp_path):
    """The table of excluded scans is written before the error is raised."""
    root, table = make_bids(["sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T1w.nii.gz"]), tmp_path / "quarantine.tsv"
    with pytest.raises(DataError, match="no usable T1w scan"):
        build_index(root, STUDY, SplitConfig(), quarantine=table)
    [row] = read_quarantine(table)
    assert "2 files fit T1w" in row.reason


def test_people_without_a_scan_or_a_row_are_listed(make_bids, pair_files):
    """In studies with a table of participants."""
    files = [*pair_files("1"), *pair_files("2")]
    index = pair_scans(make_bids(files, "participant_id\tage\nsub-1\t70\nsub-3\t71\n"), STUDY)
    assert index.missing["subjects in participants.tsv without a scan"] == ["3"]
    assert index.missing["subjects with a scan but not in participants.tsv"] == ["2"]
    assert (
        "subjects with a scan but not in participants.tsv" not in pair_scans(make_bids(files, name="b"), STUDY).missing
    )


def test_targets_can_be_ignored(make_bids, pair_files):
    """Two PET files are then no problem, and no target is listed."""
    root = make_bids([*pair_files("1"), "sub-1/pet/sub-1_trc-FDG_run-2_pet.nii.gz"])
    assert list(list_scans(root, STUDY, STUDY.modalities).unused_targets) == ["sub-1"]
    index = list_scans(root, STUDY, STUDY.sources)
    assert index.pairs[["scan", "target"]].to_numpy().tolist() == [["sub-1", ""]]
    assert not index.unused_targets


def test_a_study_without_pairs_is_an_error(make_bids):
    """A study without pairs can be converted, but not trained."""
    root = make_bids(["sub-1/anat/sub-1_T1w.nii.gz"])
    assert pair_scans(root, STUDY).pairs["split"].tolist() == ["convert"]
    with pytest.raises(DataError, match="none of 1 scans with T1w has FDG too"):
        build_index(root, STUDY, SplitConfig())


def test_unknown_name_in_split_is_listed(make_bids, pair_files):
    """The error names a test subject who is not in the dataset."""
    root = make_bids([*pair_files("1"), *pair_files("2")])
    with pytest.raises(ConfigError, match="nobody"):
        build_index(root, STUDY, SplitConfig(test_subjects=("1", "nobody")))


def test_index_does_not_depend_on_the_order_of_files_and_rows(make_bids, pair_files):
    """The same subjects give the same table, byte for byte, for any order of files and rows."""
    labels = [f"{number:02d}" for number in range(12)]
    texts = []
    for attempt in range(2):
        random.Random(attempt).shuffle(labels)
        table = "participant_id\tsex\n" + "".join(f"sub-{label}\t{'FM'[int(label) % 2]}\n" for label in labels)
        root = make_bids([file for label in labels for file in pair_files(label)], table, name=f"study{attempt}")
        layout = Layout(root / "out")
        build_index(root, StudyConfig(name="t", side=("sex",)), SplitConfig(seed=3)).write(layout)
        texts.append(layout.pairs.read_bytes())
    assert texts[0] == texts[1]


def test_write_and_read_give_the_same_table(make_bids, pair_files):
    """Labels such as 01 stay text, and missing cells are n/a in the file."""
    table = "participant_id\tage\tsex\nsub-01\t70.5\tF\nsub-02\tn/a\tn/a\n"
    root = make_bids([*pair_files("01", "1"), "sub-02/anat/sub-02_T1w.nii.gz"], table)
    index = build_index(root, StudyConfig(name="t", side=("age", "sex")), TRAINING_ONLY)
    layout = Layout(root / "out")
    index.write(layout)
    assert layout.pairs.read_text().splitlines()[2].split("\t")[2:5] == ["n/a", "sub-02/anat/sub-02_T1w.nii.gz", "n/a"]
    pd.testing.assert_frame_equal(read_pairs(layout), index.pairs, check_dtype=False)
    assert read_pairs(layout)["session"].tolist() == ["1", None]
    assert read_pairs(layout)["age"].dtype == float
    assert read_quarantine(layout.index_quarantine) == []


def test_a_subject_or_session_may_be_called_na(make_bids, pair_files):
    """BIDS allows the labels NA and nan, which are unknown values in other columns; the splits can be kept too."""
    labels = ["NA", "nan", "NaN"]
    root = make_bids([file for label in labels for file in pair_files(label, "NA")])
    index, layout = build_index(root, StudyConfig(name="t"), SplitConfig()), Layout(root / "out")
    index.write(layout)
    assert sorted(read_pairs(layout)["subject"]) == sorted(labels)
    assert set(read_pairs(layout)["session"]) == {"NA"}
    kept = build_index(root, StudyConfig(name="t"), SplitConfig(file=layout.splits))
    pd.testing.assert_frame_equal(kept.pairs, index.pairs)


def test_read_pairs_refuses_another_table(tmp_path):
    """The error names a table without the columns of the index."""
    layout = Layout(tmp_path)
    layout.pairs.parent.mkdir()
    layout.pairs.write_text("subject\tsource\n1\tx\n")
    with pytest.raises(DataError, match=r"pairs\.tsv.*build the index again"):
        read_pairs(layout)


@pytest.mark.parametrize("name", ["session", "split", "source_FLAIR", "fold"])
def test_a_side_column_cannot_have_the_name_of_an_index_column(make_bids, pair_files, name):
    """The error names the column."""
    root = make_bids(pair_files("1"), f"participant_id\t{name}\n1\tx\n")
    with pytest.raises(ConfigError, match=name):
        pair_scans(root, StudyConfig(name="t", side=(name,)))


def test_masks_of_the_study_must_fit_a_scan(make_bids, pair_files, tmp_path):
    """Masks that fit none are an error, as in a conversion; those that lack one are listed as missing."""
    root = make_bids([*pair_files("1"), *pair_files("2")])
    masks = make_bids(["sub-3/anat/sub-3_desc-brain_mask.nii.gz"], name="masks")
    study = StudyConfig(name="t", masks=masks)
    with pytest.raises(DataError, match=r"no mask of any of 2 scans, expected names such as sub-1/anat/sub-1_"):
        build_index(root, study, TRAINING_ONLY)
    mask = masks / "sub-2" / "anat" / "sub-2_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.touch()
    index = build_index(root, study, TRAINING_ONLY)
    assert index.pairs["scan"].tolist() == ["sub-1", "sub-2"]
    assert ["sub-1"] in index.missing.values()
    assert "without a mask in study.masks, masked by deepbet: 1 (sub-1)" in study_summary(index, study, TRAINING_ONLY)


def test_splits_are_listed_by_subject_with_fold_and_strata(make_bids, pair_files):
    """Table splits.tsv has a row per subject with a pair; a column used for strata only is no side column."""
    labels = [f"{number:02d}" for number in range(12)]
    files = [file for label in labels for file in pair_files(label, "a")]
    table = "participant_id\tage\tsite\n" + "".join(f"{label}\t{60 + int(label)}\tAB\n" for label in labels)
    root = make_bids([*files, "sub-00/ses-b/anat/sub-00_ses-b_T1w.nii", "sub-99/anat/sub-99_T1w.nii"], table)
    split = SplitConfig(folds=3, fold=1, stratify=("age", "site"), validation=0.2)
    index = build_index(root, StudyConfig(name="t", side=("age",)), split)
    layout = Layout(root / "out")
    index.write(layout)
    splits = pd.read_csv(layout.splits, sep="\t", dtype=str)
    assert splits.columns.tolist() == ["subject", "fold", "split", "age", "site"]
    assert splits["subject"].tolist() == labels
    assert (splits["split"] == "test").tolist() == (splits["fold"] == "1").tolist()
    assert splits["age"].unique().tolist() == ["60 to 62.75", "62.75 to 65.5", "65.5 to 68.25", "68.25 to 71"]
    assert index.pairs.columns.tolist()[6:] == ["age"]
    from_file = build_index(root, StudyConfig(name="t", side=("age",)), SplitConfig(file=layout.splits))
    pd.testing.assert_frame_equal(from_file.pairs, index.pairs)


def test_coded_column_with_an_unknown_value_is_stratified(make_bids, pair_files):
    """Subjects with an unknown value form a stratum."""
    files = [file for label in ("1", "2", "3", "4") for file in pair_files(label)]
    table = "participant_id\tsex\n1\t1\n2\t2\n3\tn/a\n4\t1\n"
    root = make_bids(files, table, {"sex": {"Levels": {"1": "male", "2": "female"}}})
    index = build_index(root, StudyConfig(name="x", side=("sex",)), SplitConfig())
    assert index.pairs["sex"].isna().sum() == 1
    assert (index.pairs["split"] == "train").any()
