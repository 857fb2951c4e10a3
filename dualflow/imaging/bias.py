"""N4 bias field correction, estimated on a coarse copy and applied at full resolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk  # noqa: N813

from dualflow.imaging.geometry import BoolArray, Volume, from_sitk, to_sitk

# The field is smooth over centimetres, so that a copy of this spacing carries all of it.
WORKING_MM = 4.0
ITERATIONS = (30, 30, 20)
CONTROL_POINTS = (4, 4, 4)


def correct_bias(volume: Volume, mask: BoolArray) -> Volume:
    """Divide `volume` by its bias field (Tustison et al., IEEE TMI 2010), normalised to mean log 0 in the mask.

    Args:
        volume: scan with non-negative voxels `[I, J, K]`.
        mask: brain `[I, J, K]`, where the field is fitted; beyond it the fitted surface goes on.
    """
    image = to_sitk(np.maximum(volume.array, 0), volume.affine)
    factors = [
        max(1, min(round(WORKING_MM / spacing), size // 8))
        for spacing, size in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    small = sitk.BinShrink(image, factors)
    region = sitk.BinShrink(to_sitk(mask.astype(np.float32), volume.affine), factors) > 0.5
    region = sitk.And(region, small > 1e-6 * float(volume.array.max()))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    n4.SetNumberOfControlPoints(CONTROL_POINTS)
    n4.Execute(small, region)
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetReferenceImage(image)
    resampler.UseNearestNeighborExtrapolatorOn()
    log_field, _ = from_sitk(resampler.Execute(sitk.Cast(n4.GetLogBiasFieldAsImage(small), sitk.sitkFloat32)))
    log_field = log_field - log_field[mask].mean()
    return replace(volume, array=(volume.array * np.exp(-log_field)).astype(np.float32))
