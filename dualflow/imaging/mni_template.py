"""The ICBM152 2009a symmetric template at 1 and 3 mm, from the files of the installed nilearn package.

Fonov et al. (2011), Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54:313-327.
The files are read directly, because `nilearn.datasets` takes a second to import.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform

from dualflow.errors import DataError
from dualflow.imaging.geometry import Volume

BRAIN_THRESHOLD = 0.2
"""Intensity of the skull-stripped template above which a voxel is brain."""
COARSE_MM = 3


@cache
def template_map(name: str) -> Volume:
    """A map of the template at 1 mm, scaled to a maximum of 1.

    Args:
        name: `t1` for the skull-stripped T1 image, `gm` or `wm` for the share of a tissue.

    Raises:
        DataError: the package with the template is missing or incomplete.
    """
    spec = find_spec("nilearn")
    folders = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(folders or [""]))) / "datasets" / "data"
    try:
        image = nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
        array = np.asanyarray(image.dataobj).astype(np.float32)
    except OSError as error:
        raise DataError(f"ICBM152 template: {folder} cannot be read; run 'pip install nilearn'") from error
    array /= array.max()
    return Volume(array, np.asarray(image.affine, dtype=np.float64), Path(name))


@cache
def coarse_template() -> tuple[Volume, Volume]:
    """The skull-stripped T1 template at 3 mm, by cubic interpolation, and its brain mask."""
    fine = template_map("t1")
    affine = np.diag([COARSE_MM, COARSE_MM, COARSE_MM, 1.0])
    affine[:3, 3] = fine.affine[:3, 3]
    shape = [-(-(size - 1) // COARSE_MM) + 1 for size in fine.array.shape]
    array = np.zeros(shape, np.float32, order="F")
    affine_transform(fine.array, [float(COARSE_MM)] * 3, output_shape=tuple(shape), output=array, order=3)
    # The spline overshoots at edges.
    array = array.clip(min(fine.array.min(), 0), fine.array.max())
    return Volume(array, affine), Volume((array > BRAIN_THRESHOLD).astype(np.float32), affine)
