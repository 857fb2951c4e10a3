"""The two simulated sites and their MR scanners, which turn anatomy into volumes on their grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from dualflow.arrays import Singles
from dualflow.cohort.anatomy import Affine, Anatomy, Tissue, lattice, points_on_grid, tissue, transform
from dualflow.cohort.laws import LAWS
from dualflow.cohort.people import Person, Site

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Scanner:
    """One site: an MR scanner and a PET scanner.

    Attributes:
        model: invented model name.
        field: magnetic field strength in T.
        orientation: direction of each T1 array axis, in nibabel's letters.
        voxel: T1 voxel edges in mm, by array axis.
        shape: T1 size in voxels.
        signal: T1 signal of grey matter, fluid, soft tissue and fat; white matter is 1.
        gamma: exponent on the signal, a stand-in for sequence and reconstruction.
        mr_noise: standard deviation of each channel of the Rician noise, in units of white matter.
        bias: strength of the receive field's inhomogeneity, in log signal.
        blur: PET resolution in mm FWHM, at the middle of the field of view.
        blur_edge: the same 100 mm off the axis.
        pet_noise: relative standard deviation of a PET voxel of grey matter at 185 MBq.
    """

    model: str
    field: float
    orientation: str
    voxel: tuple[float, float, float]
    shape: Shape
    signal: tuple[float, float, float, float]
    gamma: float
    mr_noise: float
    bias: float
    blur: float
    blur_edge: float
    pet_noise: float


def t1_grid(person: Person) -> tuple[Affine, Shape]:
    """The T1 grid: the site's orientation, tilted by a few degrees, centred on the scanner's isocentre."""
    scanner, rng = SCANNERS[person.site], person.generator("tilt")
    tilt = Rotation.from_euler("xyz", np.clip(rng.normal(0, (4, 2, 2)), -9, 9), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.stack([_DIRECTIONS[letter] for letter in scanner.orientation], axis=1) * scanner.voxel
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(scanner.shape) - 1) / 2)
    return affine, scanner.shape


def acquire_t1(person: Person, body: Anatomy) -> tuple[Singles, Affine, float]:
    """Simulate the T1w scan: signal [i, j, k] in arbitrary units, its affine, and the true brain volume in mL."""
    scanner, rng = _with_contrast(SCANNERS[person.site], person), person.generator("mr")
    affine, size = t1_grid(person)
    parts = tissue(body, points_on_grid(body.template_points, affine, size))
    signal = _t1_signal(parts, scanner, int(np.prod(size)), rng).reshape(size)
    signal *= np.exp(_receive_field(rng, affine, size, scanner.bias))
    sd = np.float32(scanner.mr_noise * np.exp(rng.normal(0, 0.12)))
    signal += sd * rng.standard_normal(size, dtype=np.float32)
    quadrature = sd * rng.standard_normal(size, dtype=np.float32)
    gain = np.float32(rng.uniform(380, 620))
    volume = float(np.count_nonzero(parts.mask) * abs(np.linalg.det(affine[:3, :3])) / 1000)
    return gain * np.hypot(signal, quadrature), affine, volume


def _with_contrast(scanner: Scanner, person: Person) -> Scanner:
    """The scanner with the person's contrast, by which the law lets equal tissue differ between people."""
    law, rng = LAWS[person.law], person.generator("contrast")
    grey, fluid, *outside = scanner.signal
    grey *= np.exp(law.signal_sd * np.clip(rng.normal(), -2, 2))
    fluid *= np.exp(3 * law.signal_sd * np.clip(rng.normal(), -2, 2))
    gamma = scanner.gamma * np.exp(law.gamma_sd * np.clip(rng.normal(), -2, 2))
    return replace(scanner, signal=(grey, fluid, *outside), gamma=gamma)


def _t1_signal(parts: Tissue, scanner: Scanner, size: int, rng: np.random.Generator) -> Singles:
    grey, fluid, soft, fat = np.asarray(scanner.signal) * np.exp(rng.normal(0, 0.025, 4))
    signal = np.zeros(size, np.float32)
    signal[parts.head] = soft * parts.soft + fat * parts.fat
    signal[parts.brain] += grey * parts.grey + parts.white + fluid * parts.fluid + parts.detail
    np.maximum(signal, 0, out=signal)
    return np.power(signal, np.float32(scanner.gamma * np.exp(rng.normal(0, 0.03))))


def _receive_field(rng: np.random.Generator, affine: Affine, size: Shape, strength: float) -> Singles:
    """Smooth log gain [i, j, k]: a random quadratic of position, roughly within +- 2 `strength`."""
    linear, square = rng.normal(0, 0.6 * strength, 3), rng.normal(0.3, 0.5, 3) * strength

    def field(points: Singles) -> Singles:
        scaled = points / np.float32(90)
        value = np.tensordot(linear, scaled, axes=1) - np.tensordot(square, scaled**2, axes=1)
        return np.asarray(value[None], np.float32)

    gain: Singles = points_on_grid(field, affine, size)[0]
    return gain


def deformation_field(body: Anatomy, affine: Affine, size: Shape, linear: Affine) -> tuple[Singles, Affine]:
    """Displacement [3, ...] in mm left over by the best affine, on every third T1 voxel, and that lattice's affine."""
    world, coarse = lattice(affine, size)
    return body.template_points(world) - transform(linear, world), coarse


_DIRECTIONS: Mapping[str, npt.NDArray[Any]] = {
    "R": np.array([1.0, 0, 0]),
    "L": np.array([-1.0, 0, 0]),
    "A": np.array([0, 1.0, 0]),
    "P": np.array([0, -1.0, 0]),
    "S": np.array([0, 0, 1.0]),
    "I": np.array([0, 0, -1.0]),
}
SCANNERS: Mapping[Site, Scanner] = {
    "A": Scanner(
        model="Simulated-A",
        field=3.0,
        orientation="PSR",
        voxel=(1.2, 1.2, 1.3),
        shape=(182, 180, 132),
        signal=(0.64, 0.14, 0.42, 1.10),
        gamma=1.0,
        mr_noise=0.022,
        bias=0.16,
        blur=5.4,
        blur_edge=6.6,
        pet_noise=0.06,
    ),
    "B": Scanner(
        model="Simulated-B",
        field=1.5,
        orientation="LAS",
        voxel=(1.25, 1.25, 1.3),
        shape=(138, 176, 170),
        signal=(0.70, 0.20, 0.48, 1.25),
        gamma=1.2,
        mr_noise=0.035,
        bias=0.10,
        blur=6.8,
        blur_edge=7.6,
        pet_noise=0.085,
    ),
}
