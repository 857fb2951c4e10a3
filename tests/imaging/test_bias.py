"""N4 bias field correction."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from dualflow.imaging.bias import correct_bias
from dualflow.imaging.geometry import Volume
from dualflow.imaging.mni_template import coarse_template


def test_n4_removes_a_known_field():
    """A smooth field of 30 % across the brain is removed by more than three quarters."""
    image, mask = coarse_template()
    inside = mask.array > 0
    ramp = np.linspace(-0.3, 0.3, image.array.shape[1], dtype=np.float32)[None, :, None]
    biased = replace(image, array=image.array * np.exp(ramp) * 500)
    reference, corrected = correct_bias(replace(image, array=image.array * 500), inside), correct_bias(biased, inside)
    bright = inside & (image.array > 0.5)
    residual = np.log(corrected.array[bright] / reference.array[bright])
    assert residual.std() < 0.25 * np.log(biased.array[bright] / (500 * image.array[bright])).std()


@pytest.mark.parametrize("codes", ["LAS", "PIR", "SPL"])
def test_the_order_of_the_voxels_does_not_matter_to_n4(codes):
    """The same head, stored along other axes, has the same field; otherwise its verdict would change."""
    image, mask = coarse_template()
    ramp = np.linspace(-0.3, 0.3, image.array.shape[1], dtype=np.float32)[None, :, None]
    head = nib.Nifti1Image(image.array * np.exp(ramp) * 500, image.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    turned, brain = (one.as_reoriented(turn) for one in (head, nib.Nifti1Image(mask.array, image.affine)))
    corrected = correct_bias(replace(image, array=head.get_fdata(dtype=np.float32)), mask.array > 0)
    volume = Volume(turned.get_fdata(dtype=np.float32), turned.affine)
    other = correct_bias(volume, brain.get_fdata() > 0)
    assert other.array.shape == volume.array.shape
    expected = nib.Nifti1Image(corrected.array, image.affine).as_reoriented(turn).get_fdata(dtype=np.float32)
    np.testing.assert_allclose(other.array, expected, rtol=1e-4)
