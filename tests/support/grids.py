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


def affine_of(codes, spacing=(1.5, 2.0, 2.5), origin=(11.0, -22.0, 33.0), turn=None):
    """Affine of a grid whose axes point to `codes`, its first voxel at `origin`, turned about that by `turn`."""
    affine = np.eye(4)
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (2, 2, 2))[:3, :3]
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ axes * spacing
    affine[:3, 3] = origin
    return affine


def numbers(low, high, count):
    """`count` numbers from `low` to `high`."""
    return st.tuples(*[st.floats(low, high)] * count)


def rotations():
    """All rotations, half turns and their neighbours among them."""
    quaternions = numbers(-1, 1, 4).filter(lambda parts: np.linalg.norm(parts) > 0.1)
    return quaternions.map(lambda parts: Rotation.from_quat(parts).as_matrix())


def affines(spacing=(0.3, 6.0), far=300.0):
    """Rigid grids of any orientation, handedness, obliqueness and anisotropy."""
    return st.builds(affine_of, st.sampled_from(CODES), numbers(*spacing, 3), numbers(-far, far, 3), rotations())


def centred(affine, shape, centre=(0.0, 0.0, 0.0)):
    """The same grid with the middle of its `shape` at the world point `centre`."""
    moved = affine.copy()
    moved[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return moved
