"""Grids for tests: all 48 orientations, and Hypothesis strategies for oblique ones."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

CODES = [
    "".join(pair[sign] for pair, sign in zip(axes, signs, strict=True))
    for axes in permutations(("LR", "PA", "IS"))
    for signs in product((0, 1), repeat=3)
]


def affine_of(codes, spacing=(1.5, 2.0, 2.5), origin=(11.0, -22.0, 33.0), rotation=None):
    """Return the affine of a grid with axis codes, voxel size, first voxel and rotation about that voxel."""
    affine = np.eye(4)
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (2, 2, 2))[:3, :3]
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ axes * spacing
    affine[:3, 3] = origin
    return affine


def numbers(low, high, count):
    """Draw tuples of `count` numbers from `low` to `high`."""
    return st.tuples(*[st.floats(low, high)] * count)


def rotations():
    """Draw rotation matrices, including those near 180 degrees."""
    quaternions = numbers(-1, 1, 4).filter(lambda parts: np.linalg.norm(parts) > 0.1)
    return quaternions.map(lambda parts: Rotation.from_quat(parts).as_matrix())


def affines(spacing=(0.3, 6.0), far=300.0):
    """Draw affines of any orientation, handedness, obliqueness and anisotropy, without shear."""
    return st.builds(affine_of, st.sampled_from(CODES), numbers(*spacing, 3), numbers(-far, far, 3), rotations())


def centred(affine, shape, centre=(0.0, 0.0, 0.0)):
    """Return the affine with the centre of a grid of this shape at a world point."""
    moved = affine.copy()
    moved[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return moved
