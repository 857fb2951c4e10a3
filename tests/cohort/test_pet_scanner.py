"""Resolution and noise of the simulated PET, and draws of scans from the true law."""

import numpy as np
import pytest
from scipy import ndimage

from dualflow.cohort import LAWS, draw_pet, participants
from dualflow.cohort.anatomy import anatomy
from dualflow.cohort.pet_scanner import PET_AFFINE, PET_FINE, PET_SHAPE, PET_VOXEL, _resolve, acquire_pet
from dualflow.cohort.scanner import acquire_t1


def test_blur_preserves_activity_and_has_the_given_fwhm():
    """A point source keeps its total activity and has the given FWHM."""
    activity = np.zeros(PET_FINE, np.float32)
    activity[PET_FINE[0] // 2, PET_FINE[1] // 2, PET_FINE[2] // 2] = 1
    image = _resolve(activity, 6.0, 6.0)
    volume = float(np.prod(PET_VOXEL))
    assert image.sum() * volume == pytest.approx(8.0, rel=0.02)
    profile = image.sum(axis=(1, 2)) / image.sum()
    x = PET_VOXEL[0] * np.arange(PET_SHAPE[0])
    sd = np.sqrt((profile * x**2).sum() - (profile * x).sum() ** 2)
    assert sd * np.sqrt(8 * np.log(2)) == pytest.approx(6.0, rel=0.03)


def test_blur_grows_towards_the_edge():
    """A point source far from the axis has a lower peak than one on the axis."""
    peaks = []
    for offset in (0, 45):
        activity = np.zeros(PET_FINE, np.float32)
        activity[PET_FINE[0] // 2 + offset, PET_FINE[1] // 2, PET_FINE[2] // 2] = 1
        peaks.append(_resolve(activity, 5.0, 8.0).max())
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("law", LAWS)
def test_draws_are_scans_like_the_measured_one(law):
    """They lie on its grid, differ in uptake and noise, have its noise, and their mean has the expected pattern."""
    person = participants(1, 0, law)[0]
    body = anatomy(person)
    pet = acquire_pet(person, body)
    np.testing.assert_array_equal(pet.affine, PET_AFFINE)
    draws = np.stack(list(draw_pet(person, body, 12, np.random.default_rng(0))))
    assert draws.shape == (12, *PET_SHAPE)
    bright = ndimage.binary_erosion(pet.expected > 0.5 * pet.expected.max(), iterations=2)
    relative = [image[bright] / image[bright].mean() for image in (pet.expected, pet.measured, *draws)]
    expected, measured, *drawn = relative
    assert np.corrcoef(expected, np.mean(drawn, axis=0))[0, 1] > 0.97
    deviations = [np.std(values - expected) for values in drawn]
    assert 0.5 * np.mean(deviations) < np.std(measured - expected) < 2 * np.mean(deviations)
    # Noise is what a 2-voxel average removes.
    grain = [(image - ndimage.uniform_filter(image, 3))[bright].std() / image[bright].mean() for image in draws]
    measured_grain = (pet.measured - ndimage.uniform_filter(pet.measured, 3))[bright].std() / pet.measured[
        bright
    ].mean()
    assert measured_grain == pytest.approx(np.mean(grain), rel=0.3)
    again = next(draw_pet(person, body, 12, np.random.default_rng(0)))
    np.testing.assert_array_equal(again, draws[0])


def test_lesions_are_dark_in_the_t1_and_cold_in_the_pet():
    """The core is darker than other tissue in the T1; the penumbra is cold too, though the T1 shows normal tissue."""
    person = next(p for p in participants(60, 0, "hard") if any(x.ml > 5 for x in LAWS["hard"].lesions(p)))
    body = anatomy(person)
    lesion = max(body.findings.lesions, key=lambda lesion: lesion.ml)
    t1, affine, _ = acquire_t1(person, body)
    pet = acquire_pet(person, body)

    def rings(image, image_affine, to_t1):
        """Mean of the core, the penumbra and normal tissue of the same hemisphere; grey and white matter only."""
        step = 3
        voxels = np.indices(image.shape)[:, ::step, ::step, ::step].reshape(3, -1)
        world = (to_t1 @ image_affine @ np.vstack([voxels, np.ones_like(voxels[:1])]))[:3].astype(np.float32)
        points = body.template_points(world)
        distance, tissue_share = lesion.distance(points), intact_tissue(points)
        values = image[*voxels]
        inside = tissue_share > 0.9
        return [
            np.mean(values[inside & (distance > low) & (distance < high)])
            for low, high in ((-99, -3), (3, 7), (25, 45))
        ]

    core, penumbra, normal = rings(t1, affine, np.eye(4))
    assert core < 0.5 * normal
    assert penumbra > 0.85 * normal
    core, penumbra, normal = rings(pet.noisefree, pet.affine, pet.to_t1)
    assert core < 0.55 * normal
    assert penumbra < 0.8 * normal


def intact_tissue(points):
    """Share of grey and white matter of the template at points [3, N]."""
    from dualflow.cohort.template import template

    base = template()
    return ndimage.map_coordinates(base.grey + base.white, base.brain.index(points), order=1)
