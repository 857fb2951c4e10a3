"""N4 bias field correction, estimated on a coarse copy of the brain and applied at full resolution."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

from dualflow.arrays import Bools, Singles
from dualflow.imaging.geometry import Volume, from_sitk, ras_orders, to_sitk

# The field is smooth over centimetres: white matter is as uniform as with 4 mm, in a third of the time.
WORKING_MM = 6.0
ITERATIONS = (30, 30, 20)
CONTROL_POINTS = (4, 4, 4)
_MARGIN = 4
# N4 takes logarithms, so voxels below this share of the maximum are left out.
_FLOOR = 1e-6


def correct_bias(volume: Volume, mask: Bools) -> Volume:
    """Divide `volume` by its bias field (Tustison et al., IEEE TMI 2010), whose mean logarithm in the mask is 0.

    N4 depends on the order of the axes. It sees them from left to right, back to front and bottom to top, so that the
    result does not depend on how the voxels are stored.

    Args:
        volume: scan with non-negative voxels `[I, J, K]`.
        mask: brain `[I, J, K]`, where the field is fitted; outside, the field at the rim is extended.
    """
    to_ras, from_ras = ras_orders(volume.affine)
    array, brain = (np.ascontiguousarray(nib.apply_orientation(part, to_ras)) for part in (volume.array, mask))
    affine = volume.affine @ nib.orientations.inv_ornt_aff(to_ras, volume.array.shape)
    log_field = nib.apply_orientation(_log_field(Volume(array, affine), brain), from_ras)
    log_field = log_field - log_field[mask].mean()
    return replace(volume, array=np.ascontiguousarray(volume.array * np.exp(-log_field), dtype=np.float32))


def _log_field(volume: Volume, mask: Bools) -> Singles:
    """Logarithm of the bias field of a volume whose axes point right, forwards and up, on its grid."""
    inside = np.argwhere(mask)
    low = np.maximum(inside.min(axis=0) - _MARGIN, 0)
    size = np.minimum(inside.max(axis=0) + 1 + _MARGIN, mask.shape) - low
    full = to_sitk(np.maximum(volume.array, 0), volume.affine)
    image, region = (
        sitk.RegionOfInterest(volume_image, size.tolist(), low.tolist())
        for volume_image in (full, to_sitk(mask.astype(np.float32), volume.affine))
    )
    factors = [
        max(1, min(round(WORKING_MM / edge), count // 8))
        for edge, count in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    image = sitk.BinShrink(image, factors)
    region = sitk.And(sitk.BinShrink(region, factors) > 0.5, image > _FLOOR * float(volume.array.max()))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    n4.SetNumberOfControlPoints(CONTROL_POINTS)
    n4.Execute(image, region)
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(full)
    resampler.UseNearestNeighborExtrapolatorOn()
    log_field, _ = from_sitk(resampler.Execute(sitk.Cast(n4.GetLogBiasFieldAsImage(image), sitk.sitkFloat32)))
    return np.asarray(log_field, dtype=np.float32)
