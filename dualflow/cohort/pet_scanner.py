"""The simulated PET scanners: a person's uptake, blurred and with noise, on the PET grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dualflow.arrays import Doubles, Singles
from dualflow.cohort.anatomy import Affine, Anatomy, Tissue, points_on_grid, tissue, transform
from dualflow.cohort.laws import LAWS
from dualflow.cohort.people import Person
from dualflow.cohort.scanner import SCANNERS, Scanner, Shape
from dualflow.imaging.geometry import FWHM


def _centred(shape: Shape, voxel: tuple[float, float, float]) -> Affine:
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = -np.asarray(voxel) * (np.asarray(shape) - 1) / 2
    return affine


PET_VOXEL = (2.4, 2.4, 3.0)
PET_SHAPE: Shape = (104, 116, 68)
PET_AFFINE = _centred(PET_SHAPE, PET_VOXEL)
PET_FINE: Shape = (124, 138, 104)
EXTRACEREBRAL = 0.16
"""Usual uptake of muscle and skin."""


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
    measured: Singles
    noisefree: Singles
    expected: Singles
    to_t1: Affine
    dose: float
    weight: float
    blur: float


@dataclass(frozen=True)
class Session:
    """What varies between scans of one person in one pose.

    Attributes:
        dose: injected activity in MBq.
        weight: body weight in kg.
        scale: Bq/mL of an uptake of 1.
        blur: resolution at the middle of the field of view, mm FWHM.
        extracerebral: uptake of muscle and skin.
    """

    dose: float
    weight: float
    scale: np.float32
    blur: float
    extracerebral: float

    @classmethod
    def draw(cls, person: Person, rng: np.random.Generator) -> Session:
        """Draw dose, weight, blur and extracerebral uptake."""
        dose, weight = rng.normal(185, 20), np.clip(rng.normal(80 if person.sex == "M" else 67, 11), 42, 130)
        # An uptake of 1 is a standardised uptake value of about 8 g/mL.
        scale = np.float32(8.0 * np.exp(rng.normal(0, 0.13)) * dose * 1e6 / (weight * 1e3))
        blur = SCANNERS[person.site].blur + float(np.clip(rng.normal(0, 0.35), -0.9, 0.9))
        return cls(dose, weight, scale, blur, EXTRACEREBRAL * np.exp(rng.normal(0, 0.2)))


def acquire_pet(person: Person, body: Anatomy) -> Pet:
    """Simulate a person's FDG scan and its two ground truths."""
    scanner, rng, law = SCANNERS[person.site], person.generator("pet"), LAWS[person.law]
    to_t1 = _pose(rng)
    session = Session.draw(person, rng)
    parts = _pet_tissue(body, to_t1)
    noisefree = _noisefree(parts, law.uptake(person, body.findings), scanner, session)
    expected = _activity(parts, law.expected(person, body.findings), EXTRACEREBRAL)
    return Pet(
        affine=PET_AFFINE,
        measured=session.scale * _with_noise(noisefree, scanner, session, rng),
        noisefree=session.scale * noisefree,
        expected=session.scale * _resolve(expected, scanner.blur, scanner.blur_edge),
        to_t1=to_t1,
        dose=float(np.round(session.dose, 1)),
        weight=float(np.round(session.weight, 1)),
        blur=session.blur,
    )


def expected_pet(person: Person, body: Anatomy) -> Singles:
    """The person's anatomy with the expected uptake and the scanner's usual blur [*PET_SHAPE], without noise."""
    scanner, parts = SCANNERS[person.site], _pet_tissue(body, _pose(person.generator("pet")))
    activity = _activity(parts, LAWS[person.law].expected(person, body.findings), EXTRACEREBRAL)
    return _resolve(activity, scanner.blur, scanner.blur_edge)


def draw_pet(person: Person, body: Anatomy, count: int, rng: np.random.Generator) -> Iterator[Singles]:
    """Draw scans in Bq/mL [*PET_SHAPE] from the true p(PET | MR, side information).

    Uptake, dose, blur and noise are drawn anew, as for a measured scan; anatomy and pose are the person's. The grid is
    that of the measured scan.
    """
    scanner, parts = SCANNERS[person.site], _pet_tissue(body, _pose(person.generator("pet")))
    for uptake in LAWS[person.law].draws(person, body.findings, count, rng):
        session = Session.draw(person, rng)
        image = _noisefree(parts, uptake, scanner, session)
        yield session.scale * _with_noise(image, scanner, session, rng)


def _pose(rng: np.random.Generator) -> Affine:
    """Draw the 4x4 that maps points from the PET world to the T1 world."""
    to_t1 = np.eye(4)
    to_t1[:3, :3] = Rotation.from_euler("xyz", np.clip(rng.normal(0, 3.5, 3), -9, 9), degrees=True).as_matrix()
    # The head is placed so that the brain, not the chin, fills the scanner's shorter axis.
    to_t1[:3, 3] = np.clip(rng.normal(0, 5, 3), -12, 12) + np.array([0.0, 0.0, 12.0])
    return to_t1


def _pet_tissue(body: Anatomy, to_t1: Affine) -> Tissue:
    """Tissue on the 2 mm grid that the scanner resolves."""
    fine = _centred(PET_FINE, (2.0, 2.0, 2.0))
    return tissue(body, points_on_grid(lambda p: body.template_points(transform(to_t1, p)), fine, PET_FINE))


def _noisefree(parts: Tissue, uptake: Doubles, scanner: Scanner, session: Session) -> Singles:
    """The scan [*PET_SHAPE] in units of pure grey matter, without noise."""
    activity = _activity(parts, uptake, session.extracerebral)
    return _resolve(activity, session.blur, scanner.blur_edge + session.blur - scanner.blur)


def _with_noise(noisefree: Singles, scanner: Scanner, session: Session, rng: np.random.Generator) -> Singles:
    counts = scanner.pet_noise * np.sqrt(185 / session.dose)
    grain = ndimage.gaussian_filter(rng.standard_normal(PET_SHAPE, dtype=np.float32), 0.7)
    measured = noisefree + np.float32(counts / grain.std()) * grain * np.sqrt(noisefree + 0.01)
    return np.asarray(np.maximum(measured, 0), np.float32)


def _activity(parts: Tissue, uptake: Doubles, extracerebral: float) -> Singles:
    """Uptake density [*PET_FINE], in units of pure grey matter, before the scanner."""
    values = uptake.astype(np.float32)
    density = np.zeros(int(np.prod(PET_FINE)), np.float32)
    density[parts.head] = np.float32(extracerebral) * (parts.soft + 0.5 * parts.fat)
    tissue_uptake = values[parts.grey_region] * parts.grey + values[parts.white_region] * parts.white
    density[parts.brain] += parts.viability * tissue_uptake + 0.03 * parts.fluid
    return density.reshape(PET_FINE)


def _resolve(activity: Singles, middle: float, edge: float) -> Singles:
    """Blur and sample in one step: a Gaussian whose width grows with the distance from the axis [*PET_SHAPE]."""
    x, y = (voxel * (np.arange(n) - (n - 1) / 2) for n, voxel in zip(PET_SHAPE[:2], PET_VOXEL[:2], strict=True))
    radius = np.hypot(x[:, None], y[None, :])[:, :, None]
    share = np.minimum((radius / 100) ** 2, 1).astype(np.float32)
    blended = (1 - share) * _blurred(activity, middle) + share * _blurred(activity, edge)
    return np.asarray(blended, np.float32)


def _blurred(activity: Singles, fwhm: float) -> Singles:
    for axis in range(3):
        matrix = _blur_matrix(PET_FINE[axis], PET_SHAPE[axis], PET_VOXEL[axis], fwhm)
        activity = np.moveaxis(np.tensordot(matrix, activity, axes=(1, axis)), 0, axis)
    return activity


def _blur_matrix(fine: int, coarse: int, voxel: float, fwhm: float) -> Singles:
    """Matrix [coarse, fine] that samples a 2 mm line, blurred, at the centres of the PET voxels."""
    sigma = fwhm / FWHM
    coarse_mm = voxel * (np.arange(coarse) - (coarse - 1) / 2)
    fine_mm = 2.0 * (np.arange(fine) - (fine - 1) / 2)
    weight = np.exp(-0.5 * ((coarse_mm[:, None] - fine_mm[None, :]) / sigma) ** 2)
    return np.asarray(weight * 2.0 / (sigma * np.sqrt(2 * np.pi)), np.float32)
