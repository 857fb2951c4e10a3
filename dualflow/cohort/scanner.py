"""The two simulated sites: MR and PET scanners that turn anatomy and uptake into volumes on their grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dualflow.cohort.anatomy import Affine, Anatomy, Tissue, lattice, points_on_grid, tissue, transform
from dualflow.cohort.people import Person, Site
from dualflow.cohort.template import Floats
from dualflow.cohort.uptake import Doubles

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


@dataclass(frozen=True)
class Pet:
    """PET volumes of one person in Bq/mL on one grid.

    Attributes:
        affine: 4x4 of the grid.
        measured: with noise.
        noisefree: the same without noise.
        expected: true anatomy, expected uptake, the scanner's usual blur.
        to_t1: 4x4, points map from the PET world to the T1 world.
        dose: injected activity in MBq.
        weight: body weight in kg.
        blur: the person's own blur at the middle, mm FWHM.
    """

    affine: Affine
    measured: Floats
    noisefree: Floats
    expected: Floats
    to_t1: Affine
    dose: float
    weight: float
    blur: float


def t1_grid(person: Person) -> tuple[Affine, Shape]:
    """The T1 grid: the site's orientation, tilted by a few degrees, centred on the scanner's isocentre."""
    scanner, rng = SCANNERS[person.site], person.generator("tilt")
    tilt = Rotation.from_euler("xyz", np.clip(rng.normal(0, (4, 2, 2)), -9, 9), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.stack([_DIRECTIONS[letter] for letter in scanner.orientation], axis=1) * scanner.voxel
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(scanner.shape) - 1) / 2)
    return affine, scanner.shape


def acquire_t1(person: Person, body: Anatomy) -> tuple[Floats, Affine, float]:
    """Simulate the T1w scan: signal [i, j, k] in arbitrary units, its affine, and the true brain volume in mL."""
    scanner, rng = SCANNERS[person.site], person.generator("mr")
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


def acquire_pet(person: Person, body: Anatomy, uptake: Doubles, expected: Doubles) -> Pet:
    """Simulate a person's FDG scan and its two ground truths, from the uptake of pure tissue by region [R]."""
    scanner, rng = SCANNERS[person.site], person.generator("pet")
    to_t1 = np.eye(4)
    to_t1[:3, :3] = Rotation.from_euler("xyz", np.clip(rng.normal(0, 3.5, 3), -9, 9), degrees=True).as_matrix()
    # The head is placed so that the brain, not the chin, fills the scanner's shorter axis.
    to_t1[:3, 3] = np.clip(rng.normal(0, 5, 3), -12, 12) + np.array([0.0, 0.0, 12.0])
    dose, weight = rng.normal(185, 20), np.clip(rng.normal(80 if person.sex == "M" else 67, 11), 42, 130)
    # An uptake of 1 is a standardised uptake value of about 8 g/mL.
    scale = np.float32(8.0 * np.exp(rng.normal(0, 0.13)) * dose * 1e6 / (weight * 1e3))
    blur = scanner.blur + float(np.clip(rng.normal(0, 0.35), -0.9, 0.9))
    extracerebral = 0.16 * np.exp(rng.normal(0, 0.2))

    fine = _centred(PET_FINE, (2.0, 2.0, 2.0))
    parts = tissue(body, points_on_grid(lambda p: body.template_points(transform(to_t1, p)), fine, PET_FINE))
    activity = [_activity(parts, regional, level) for regional, level in ((uptake, extracerebral), (expected, 0.16))]
    noisefree = _resolve(activity[0], blur, scanner.blur_edge + blur - scanner.blur)
    expected_image = _resolve(activity[1], scanner.blur, scanner.blur_edge)
    counts = scanner.pet_noise * np.sqrt(185 / dose)
    grain = ndimage.gaussian_filter(rng.standard_normal(PET_SHAPE, dtype=np.float32), 0.7)
    measured = noisefree + np.float32(counts / grain.std()) * grain * np.sqrt(noisefree + 0.01)
    return Pet(
        affine=_centred(PET_SHAPE, PET_VOXEL),
        measured=scale * np.maximum(measured, 0),
        noisefree=scale * noisefree,
        expected=scale * expected_image,
        to_t1=to_t1,
        dose=float(np.round(dose, 1)),
        weight=float(np.round(weight, 1)),
        blur=blur,
    )


def _t1_signal(parts: Tissue, scanner: Scanner, size: int, rng: np.random.Generator) -> Floats:
    grey, fluid, soft, fat = np.asarray(scanner.signal) * np.exp(rng.normal(0, 0.025, 4))
    signal = np.zeros(size, np.float32)
    signal[parts.head] = soft * parts.soft + fat * parts.fat
    signal[parts.brain] += grey * parts.grey + parts.white + fluid * parts.fluid + parts.detail
    np.maximum(signal, 0, out=signal)
    return np.power(signal, np.float32(scanner.gamma * np.exp(rng.normal(0, 0.03))))


def _receive_field(rng: np.random.Generator, affine: Affine, size: Shape, strength: float) -> Floats:
    """Smooth log gain [i, j, k]: a random quadratic of position, roughly within +- 2 `strength`."""
    linear, square = rng.normal(0, 0.6 * strength, 3), rng.normal(0.3, 0.5, 3) * strength

    def field(points: Floats) -> Floats:
        scaled = points / np.float32(90)
        value = np.tensordot(linear, scaled, axes=1) - np.tensordot(square, scaled**2, axes=1)
        return np.asarray(value[None], np.float32)

    gain: Floats = points_on_grid(field, affine, size)[0]
    return gain


def _activity(parts: Tissue, uptake: Doubles, extracerebral: float) -> Floats:
    """Uptake density [*PET_FINE], in units of pure grey matter, before the scanner."""
    values = uptake.astype(np.float32)
    density = np.zeros(int(np.prod(PET_FINE)), np.float32)
    density[parts.head] = np.float32(extracerebral) * (parts.soft + 0.5 * parts.fat)
    density[parts.brain] += (
        values[parts.grey_region] * parts.grey + values[parts.white_region] * parts.white + 0.03 * parts.fluid
    )
    return density.reshape(PET_FINE)


def _resolve(activity: Floats, middle: float, edge: float) -> Floats:
    """Blur and sample in one step: a Gaussian whose width grows with the distance from the axis [*PET_SHAPE]."""
    x, y = (voxel * (np.arange(n) - (n - 1) / 2) for n, voxel in zip(PET_SHAPE[:2], PET_VOXEL[:2], strict=True))
    radius = np.hypot(x[:, None], y[None, :])[:, :, None]
    share = np.minimum((radius / 100) ** 2, 1).astype(np.float32)
    blended = (1 - share) * _blurred(activity, middle) + share * _blurred(activity, edge)
    return np.asarray(blended, np.float32)


def _blurred(activity: Floats, fwhm: float) -> Floats:
    for axis in range(3):
        matrix = _blur_matrix(PET_FINE[axis], PET_SHAPE[axis], PET_VOXEL[axis], fwhm)
        activity = np.moveaxis(np.tensordot(matrix, activity, axes=(1, axis)), 0, axis)
    return activity


def _blur_matrix(fine: int, coarse: int, voxel: float, fwhm: float) -> Floats:
    """Matrix [coarse, fine] that samples a 2 mm line, blurred, at the centres of the PET voxels."""
    sigma = fwhm / np.sqrt(8 * np.log(2))
    coarse_mm = voxel * (np.arange(coarse) - (coarse - 1) / 2)
    fine_mm = 2.0 * (np.arange(fine) - (fine - 1) / 2)
    weight = np.exp(-0.5 * ((coarse_mm[:, None] - fine_mm[None, :]) / sigma) ** 2)
    return np.asarray(weight * 2.0 / (sigma * np.sqrt(2 * np.pi)), np.float32)


def _centred(shape: Shape, voxel: tuple[float, float, float]) -> Affine:
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = -np.asarray(voxel) * (np.asarray(shape) - 1) / 2
    return affine


def deformation_field(body: Anatomy, affine: Affine, size: Shape, linear: Affine) -> tuple[Floats, Affine]:
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
PET_VOXEL = (2.4, 2.4, 3.0)
PET_SHAPE: Shape = (104, 116, 68)
PET_FINE: Shape = (124, 138, 104)
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
