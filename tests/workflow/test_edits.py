"""What-if edits of a finished study: by the command, and beside the cohort's truth."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_study import tool

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("workflow")]


def edit(workspace, command, *arguments):
    return tool("dualflow.cli", *command.split(), "--config", "tiny.yaml", *arguments, folder=workspace)


@pytest.fixture
def scan(workspace):
    """Key of a held-out scan."""
    pairs = pd.read_csv(workspace / "results/tiny/index/pairs.tsv", sep="\t")
    return pairs.loc[pairs["split"] == "test", "scan"].iloc[0]


def test_a_measured_image_is_shown_at_other_ages(workspace, scan):
    """An image for each age on the model grid, with the change of each region in a table, and a picture."""
    done = edit(workspace, "edit", scan.removeprefix("sub-"), "--column", "age", "--values", "55,70,85")
    assert done.returncode == 0, done.stderr
    assert "association" in done.stdout
    folder = workspace / "results/tiny/edits" / scan / "age"
    images = [nib.load(path).get_fdata() for path in sorted(folder.glob("*_pet.nii.gz"))]
    assert [path.name.partition("desc-")[2] for path in sorted(folder.glob("*_pet.json"))] == [
        f"editage{age}_pet.json" for age in (55, 70, 85)
    ]
    assert all(image.shape == (24, 32, 24) and np.isfinite(image).all() for image in images)
    first, middle, last = (image.sum() for image in images)
    assert (middle - first) * (last - middle) > 0  # the mean is linear in age
    table = pd.read_csv(folder / "regions.tsv", sep="\t")
    assert set(table["age"]) == {55, 70, 85}
    assert table.groupby("region")["measured"].nunique().max() == 1
    assert Image.open(folder / "series.png").size[0] > 400


def test_other_values_replace_the_images_of_earlier_ones(workspace, scan):
    """Images and table are of the same values."""
    for values, labels in (("F,M", {"editsexF", "editsexM"}), ("M", {"editsexM"})):
        assert edit(workspace, "edit", scan, "--column", "sex", "--values", values).returncode == 0
        names = (workspace / "results/tiny/edits" / scan / "sex").glob("*_pet.nii.gz")
        assert {name.name.partition("desc-")[2].partition("_")[0] for name in names} == labels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--column", "weight", "--values", "70"], "no side column 'weight'; choose from: age, sex, diagnosis"),
        (["--column", "sex", "--values", "X"], "sex = X is unknown to the model; choose from: F, M"),
        (["--column", "age", "--values", "old"], "age = old is no number"),
        (["--column", "age", "--values", "70,70"], "give one or more different values"),
    ],
)
def test_values_that_a_model_does_not_know_are_refused(workspace, scan, arguments, words):
    """The error names the value and what the model takes."""
    done = edit(workspace, "edit", scan, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_edits_are_compared_with_the_truth(workspace):
    """The table has a row for each edit, and the image comes back without one."""
    done = edit(workspace, "bench edit")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(workspace / "results/tiny/metrics/edit.tsv", sep="\t")
    assert [name.partition(",")[0] for name in table["edit"]] == ["age", "sex", "diagnosis"]
    assert float(done.stdout.rpartition(" comes back to ")[2]) < 1e-3
