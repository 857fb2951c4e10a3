"""The affine of a NIfTI header, from its qform and sform.

At least one must be coded. If both are, they must place the image's corners within 0.1 mm of each other. The sform is
preferred; its voxel edges must agree with pixdim, to the same 0.1 mm over the image. An image without
a coded affine is refused, because left and right are ambiguous.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from dualflow.errors import GeometryError
from dualflow.imaging.geometry import Affine, Points, corner_distance


class FormCodes(NamedTuple):
    """NIfTI codes of a qform and an sform: 0 unset, 1 scanner, 2 aligned, 3 Talairach, 4 the MNI template."""

    qform: int
    sform: int


SCANNER = FormCodes(1, 1)
MNI = FormCodes(4, 4)
CORNER_TOLERANCE_MM = 0.1
SHEAR_TOLERANCE = 1e-3
SPACING_MM = 0.01, 100.0
MAX_COORDINATE_MM = 10_000.0


def resolve_affine(header: nib.Nifti1Header, shape: tuple[int, int, int], path: Path) -> Affine:
    """Return the affine of a header, by the rules of this module.

    Raises:
        GeometryError: no form is coded, the two disagree, or the affine is not a rigid grid.
    """
    sform = np.asarray(header.get_sform(), dtype=np.float64) if header["sform_code"] else None
    qform = _read_qform(header, path) if header["qform_code"] else None
    affine = qform if sform is None else sform
    if affine is None:
        raise GeometryError(
            f"{path}: qform_code and sform_code are both 0, expected at least one coded affine; without it left and "
            "right are unknown: convert the scan again from its DICOM"
        )
    check_affine(affine, f"{path}: {'qform' if sform is None else 'sform'}")
    if sform is None:
        return affine
    if qform is not None:
        check_affine(qform, f"{path}: qform")
        gap = min(corner_distance(form, qform, shape) for form in (sform, _as_quaternion(sform, header)))
        if gap > CORNER_TOLERANCE_MM:
            mirrored = ", one mirrored" if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0 else ""
            raise GeometryError(
                f"{path}: qform and sform place the image's corners {gap:.2f} mm apart{mirrored}, expected at most "
                f"{CORNER_TOLERANCE_MM} mm; decide which is right and copy it over the other"
            )
    # Readers that take the voxel edges from pixdim, as ITK does, would scale the image.
    edges = header["pixdim"][1:4].astype(np.float64)
    if (np.abs(edges - voxel_sizes(sform)) * (np.array(shape) - 1)).max() > CORNER_TOLERANCE_MM:
        raise GeometryError(
            f"{path}: voxel edges are {_text(edges)} mm by pixdim and {_text(voxel_sizes(sform))} mm by the sform, "
            "expected the same; decide which is right and correct the other"
        )
    return affine


def _read_qform(header: nib.Nifti1Header, path: Path) -> Affine:
    handedness = header["pixdim"][0].item()
    if handedness not in (-1, 0, 1):
        raise GeometryError(
            f"{path}: pixdim[0] is {handedness:g}, expected 1 or -1; it distinguishes left from right in the qform: "
            "convert the scan again from its DICOM"
        )
    copy = header.copy()
    copy["pixdim"][0] = handedness or 1  # the standard reads 0 as 1, nibabel does not
    try:
        return np.asarray(copy.get_qform(), dtype=np.float64)
    except ValueError as error:
        quaternion = _text(np.array([header[f"quatern_{name}"] for name in "bcd"]))
        raise GeometryError(
            f"{path}: the qform's quatern_b, c, d are {quaternion}, expected a vector no longer than 1; convert the "
            "scan again from its DICOM"
        ) from error


def check_affine(affine: Affine, name: str) -> None:
    """Check that an affine is finite, invertible, free of shear, and plausible in position and spacing.

    Raises:
        GeometryError: the affine fails a check.
    """
    if not np.isfinite(affine).all():
        value = affine[~np.isfinite(affine)][0]
        raise GeometryError(
            f"{name}: the affine holds {value}, expected finite numbers; write the scan again from its DICOM"
        )
    if (largest := np.abs(affine).max()) > MAX_COORDINATE_MM:
        raise GeometryError(
            f"{name}: the affine reaches {largest:.3g} mm, expected at most {MAX_COORDINATE_MM:g} mm; write the scan "
            "again from its DICOM"
        )
    spacing = voxel_sizes(affine)
    if spacing.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise GeometryError(
            f"{name}: the affine is singular (voxel edges {_text(spacing)} mm), expected three independent axes of "
            "positive length; write the scan again from its DICOM"
        )
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        raise GeometryError(
            f"{name}: voxel edges are {_text(spacing)} mm, expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm; give "
            "the affine and pixdim in mm"
        )
    axes = affine[:3, :3] / spacing
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > SHEAR_TOLERANCE:
        raise GeometryError(
            f"{name}: the affine is sheared (cosine {shear:.4f} between two axes), expected at most {SHEAR_TOLERANCE}; "
            "resample the scan onto a grid with right angles"
        )


def _text(values: Points) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())


def _as_quaternion(affine: Affine, header: nib.Nifti1Header) -> Affine:
    """`affine` after rounding to a float32 quaternion, which loses up to a milliradian near half turns."""
    copy = header.copy()
    copy.set_qform(affine, code=1)
    return np.asarray(copy.get_qform(), dtype=np.float64)
