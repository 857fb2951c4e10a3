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
    with Image.open(folder / "series.png") as picture:
        assert picture.size[0] > 400


def test_other_values_replace_the_images_of_earlier_ones(workspace, scan):
    """Images and table are of the same values."""
    for values, labels in (("60.5,70", {"editage60p5", "editage70"}), ("70", {"editage70"})):
        assert edit(workspace, "edit", scan, "--column", "age", "--values", values).returncode == 0
        names = (workspace / "results/tiny/edits" / scan / "age").glob("*_pet.nii.gz")
        assert {name.name.partition("desc-")[2].partition("_")[0] for name in names} == labels


def test_edits_are_compared_with_the_truth(workspace):
    """The table has a row for each edit whose values the training saw, and the image comes back without one."""
    done = edit(workspace, "bench edit")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(workspace / "results/tiny/metrics/edit.tsv", sep="\t")
    assert table["edit"].str.startswith("age").any()
    assert not table["edit"].str.startswith("sex").any()  # the training people are women
    assert float(done.stdout.rpartition(" comes back to ")[2]) < 1e-3
