"""The simulated cohort as a BIDS dataset with its ground truth."""

import hashlib
import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from dualflow.cohort import LAWS, participants, require_own, subject_files, write_dataset, write_subject
from dualflow.cohort.anatomy import anatomy, points_on_grid, tissue, transform
from dualflow.cohort.bids import truth_root
from dualflow.errors import DataError
from dualflow.layout import Scan, bids_path
from dualflow.modalities import MODALITIES

# Tests share the fixture of the cohort, so they run in one worker.
pytestmark = pytest.mark.xdist_group("cohort")

SEED = 3
T1W, FDG = MODALITIES["T1w"], MODALITIES["FDG"]


def _load(path):
    image = nib.load(path)
    return image, image.get_fdata(dtype=np.float32)


def _truth(out, subject, desc):
    return bids_path(truth_root(out), Scan(subject.label), FDG, desc=desc)


def _sidecar(path):
    return json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())


def test_same_seed_same_bytes(cohort, tmp_path):
    """A subject that is written alone, to another folder and with other threads has identical files."""
    out, subjects = cohort
    with threadpool_limits(2):
        write_subject(tmp_path, participants(1, subjects[0].seed)[0])
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 9
    for file in files:
        assert hashlib.sha256((tmp_path / file).read_bytes()).digest() == (
            hashlib.sha256((out / file).read_bytes()).digest()
        ), file


def test_the_folder_of_another_dataset_is_refused(tmp_path):
    """Its participants.tsv would be replaced; a cohort, whole or interrupted, is written again."""
    require_own(tmp_path / "new")
    (tmp_path / "sub-C0001").mkdir()
    require_own(tmp_path)
    write_dataset(tmp_path, participants(1, SEED))
    require_own(tmp_path)
    for description in ('{"Name": "a real study"}', "not JSON", "[]"):
        (tmp_path / "dataset_description.json").write_text(description)
        with pytest.raises(DataError, match=r"holds README.md, .*participants.tsv.*; choose a new folder"):
            require_own(tmp_path)


def test_headers_agree(cohort):
    """The qform equals the sform, both with code 1, and MR and PET lie on different grids."""
    out, subjects = cohort
    for subject in subjects:
        grids = []
        for path in (bids_path(out, Scan(subject.label), T1W), bids_path(out, Scan(subject.label), FDG)):
            image = nib.load(path)
            np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
            assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
            grids.append(image.affine)
        assert not np.allclose(*grids)


def test_pet_is_noise_around_the_noisefree_truth(cohort):
    """Measured, noise-free and expected PET have one grid and scale, and differ by noise and individual deviation."""
    out, subjects = cohort
    for subject in subjects:
        image, measured = _load(bids_path(out, Scan(subject.label), FDG))
        _, noisefree = _load(_truth(out, subject, "noisefree"))
        expected_image, expected = _load(_truth(out, subject, "expected"))
        np.testing.assert_array_equal(image.affine, expected_image.affine)
        bright = noisefree > 0.5 * noisefree.max()
        assert measured[bright].mean() == pytest.approx(noisefree[bright].mean(), rel=0.01)
        assert expected[bright].mean() == pytest.approx(noisefree[bright].mean(), rel=0.12)
        assert 3e3 < noisefree[bright].mean() < 6e4
        noise = (measured - noisefree)[bright].std() / noisefree[bright].mean()
        deviation = (expected - noisefree)[bright].std() / noisefree[bright].mean()
        assert 0.03 < noise < 0.15
        assert 0.02 < deviation < 0.10


def test_transform_in_the_sidecar_takes_pet_to_t1(cohort):
    """`TargetToSource` increases the correlation between PET and the density of grey and white matter."""
    out, subjects = cohort
    for subject in subjects:
        image, pet = _load(_truth(out, subject, "noisefree"))
        to_t1 = np.array(_sidecar(_truth(out, subject, "noisefree"))["TargetToSource"])
        shape = anatomy(subject)
        scores = []
        for points_map in (to_t1, np.eye(4)):
            grid = points_on_grid(
                lambda p, m=points_map, s=shape: s.template_points(transform(m, p)), image.affine, pet.shape
            )
            parts, density = tissue(shape, grid), np.zeros(pet.size, np.float32)
            density[parts.brain] = parts.grey + 0.45 * parts.white
            scores.append(np.corrcoef(density, pet.ravel())[0, 1])
        assert scores[0] > 0.88
        assert scores[0] > scores[1] + 0.03


def test_t1_signal_follows_tissue(cohort):
    """In T1w images of both sites, white matter is brighter than grey, and grey matter than fluid."""
    out, subjects = cohort
    for subject in subjects:
        image, t1 = _load(bids_path(out, Scan(subject.label), T1W))
        shape = anatomy(subject)
        parts = tissue(shape, points_on_grid(shape.template_points, image.affine, t1.shape))
        values = t1.ravel()[parts.brain]
        white, grey, fluid = (
            np.median(values[part > 0.9]) for part in (parts.white, parts.grey, parts.fluid * parts.mask)
        )
        assert white > 1.15 * grey > 1.15 * 1.5 * fluid
        brain = parts.mask.sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert _sidecar(_truth(out, subject, "noisefree"))["BrainVolume"] == pytest.approx(brain, rel=0.005)


def test_residual_field_completes_the_affine(cohort):
    """`SourceToTemplate` plus the stored displacement field is the complete map to the template."""
    out, subjects = cohort
    subject = subjects[0]
    path = bids_path(
        truth_root(out), Scan(subject.label), T1W, suffix="xfm", space="MNI152NLin2009aSym", desc="residual"
    )
    image, field = _load(path)
    assert field.shape[3:] == (1, 3)
    linear = np.array(_sidecar(_truth(out, subject, "noisefree"))["SourceToTemplate"])
    voxels = np.random.default_rng(0).integers(0, field.shape[:3], (200, 3)).T
    world = transform(image.affine, voxels.astype(np.float32))
    stored = transform(linear, world) + field[*voxels, 0].T
    np.testing.assert_allclose(stored, anatomy(subject).template_points(world), atol=0.02)


def test_participants_table_omits_unreported_values(cohort):
    """All other values equal those of people.tsv."""
    out, subjects = cohort
    reported = pd.read_csv(out / "participants.tsv", sep="\t", keep_default_na=False, dtype=str)
    truth = pd.read_csv(truth_root(out) / "people.tsv", sep="\t", dtype=str)
    assert list(reported["participant_id"]) == [f"sub-{subject.label}" for subject in subjects]
    for column in ("age", "sex", "diagnosis"):
        for subject, value, true in zip(subjects, reported[column], truth[column], strict=True):
            assert value == ("n/a" if column in subject.unreported else true)
    assert not truth.isna().any().any()


def test_the_hard_law_writes_its_truth(tmp_path):
    """A subject of the hard law has identical files twice; the tables of truth have its traits and exact means."""
    people = participants(3, SEED, "hard")
    for copy in ("first", "second"):
        write_subject(tmp_path / copy, people[0])
    first, second = (
        {file.relative_to(tmp_path / copy): file.read_bytes() for file in subject_files(tmp_path / copy, people[0])}
        for copy in ("first", "second")
    )
    assert first == second
    write_dataset(tmp_path, people)
    truth = truth_root(tmp_path)
    table = pd.read_csv(truth / "people.tsv", sep="\t", keep_default_na=False)
    assert {"subtype", "lesion_ml_left", "lesion_ml_right", "ventricles_ml", "spread"} <= set(table)
    assert list(table["subtype"] == "none") == list(table["diagnosis"] == "CN")
    means = pd.read_csv(truth / "expected_uptake.tsv", sep="\t", index_col="participant_id")
    for person in people:
        expected = LAWS["hard"].expected(person, anatomy(person).findings)
        np.testing.assert_allclose(means.loc[f"sub-{person.label}"], expected, atol=1e-5)
    assert "hard law" in (truth / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("part", [".", "derivatives/truth"])
def test_bids_validator_accepts(cohort, part):
    """The cohort and its truth are valid BIDS."""
    program = shutil.which("bids-validator-deno", path=sysconfig.get_path("scripts"))
    if program is None:
        pytest.skip("bids-validator-deno is not installed")
    out, _ = cohort
    done = subprocess.run(
        [program, str(out / part), "--ignoreWarnings", "--format", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
