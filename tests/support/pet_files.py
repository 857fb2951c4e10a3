"""PET files for tests: small series with their BIDS sidecars."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np

AFFINE = np.array([[2.0, 0, 0, -9], [0, 2.0, 0, -8], [0, 0, 3.0, -9], [0, 0, 0, 1]])
SHAPE = (10, 9, 7)
TIMES = {"InjectionStart": 0, "ScanStart": 0, "FrameTimesStart": [0, 60, 180], "FrameDuration": [60, 120, 300]}


def save_pet(path, frames, affine=AFFINE, **sidecar):
    """Write frames `[T, I, J, K]` as a 4D file or an image `[I, J, K]` as a 3D file, with its sidecar."""
    array = np.asarray(frames, dtype=np.float32)
    image = nib.Nifti1Image(np.moveaxis(array, 0, -1) if array.ndim == 4 else array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    path.with_name(path.name.split(".")[0] + ".json").write_text(json.dumps(sidecar))
    return path
