"""Typicality: false refusals, gross corruptions, cross-fitting, lesions, grids and the saved state."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from dualflow.errors import DataError, ShapeError
from dualflow.inference import typicality as module
from dualflow.inference.typicality import Typicality, conformal_threshold
from tests.support.brains import SHAPE, SPACING_MM, brain, with_lesion

PEOPLE = 40


def fit(people, spacing_mm=SPACING_MM, subjects=None):
    sources, masks = zip(*people, strict=True)
    subjects = subjects or [f"{index:03d}" for index in range(len(people))]
    return Typicality.fit(sources, masks, spacing_mm=spacing_mm, subjects=subjects)


@pytest.fixture(scope="module")
def people():
    return [brain(index) for index in range(PEOPLE)]


@pytest.fixture(scope="module")
def fresh():
    return [brain(1000 + index) for index in range(150)]


@pytest.fixture(scope="module")
def typicality(people):
    return fit(people)


def test_few_fresh_scans_are_refused(typicality, fresh):
    """Refusals of fresh scans are no more than the attained rate explains."""
    assert typicality.rate == pytest.approx(1 / (PEOPLE + 1))
    refused = sum(typicality.score(*scan).refused for scan in fresh)
    # A threshold at the largest of N scores has a random rate of mean 1 / (N + 1); four times that is rare.
    assert refused <= binom.ppf(0.999, len(fresh), 4 * typicality.rate)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("contrast", lambda source: 1 - source),
        ("quantiles", lambda source: np.clip(source, 0, None) ** 2.5),
        ("texture", lambda source: source + 0.3 * np.random.default_rng(0).normal(size=SHAPE)),
        ("mask", lambda source: source[:, :, ::-1]),
        ("local_contrast", lambda source: np.roll(source, 4, axis=1)),
    ],
)
def test_gross_changes_are_refused_by_their_detector(typicality, fresh, name, change):
    """Inversion, gamma, noise, flips and shifts are refused, each by the detector that is there for it."""
    for source, mask in fresh[:5]:
        inside = change(mask) if name in ("mask", "local_contrast") else mask
        score = typicality.score((change(source) * inside).astype(np.float32), inside)
        assert score.refused
        assert score.z[name] > typicality.threshold


def test_linear_change_of_intensity_changes_nothing(typicality, fresh):
    """Scale and offset of the intensities do not matter."""
    source, mask = fresh[0]
    first, second = (typicality.score(np.float32(image) * mask, mask) for image in (source, 0.3 + 2 * source))
    assert second.typicality == pytest.approx(first.typicality, abs=0.02)
    assert second.lesion == pytest.approx(first.lesion, abs=0.02)


def test_threshold_is_of_people_left_out(people, typicality):
    """In-sample scores are lower than the cross-fitted threshold, which they would otherwise define."""
    inside = max(typicality.score(*scan).typicality for scan in people)
    assert inside < typicality.threshold - 0.5
    lesion = max(typicality.score(*scan).lesion for scan in people)
    assert lesion < typicality.peak_law.threshold(module.RATE)


def test_scans_of_a_subject_share_a_fold(people):
    """A subject's second scan does not lower the score of the first, and counts once in the threshold."""
    labels = [f"{index % 20:02d}" for index in range(40)]
    once, twice = fit(people[:20], subjects=labels[:20]), fit([*people[:20], *people[:20]], subjects=labels)
    assert twice.rate == once.rate == pytest.approx(1 / 21)
    apart = fit([*people[:20], *people[:20]])  # the same scans as different people
    medians = [one.calibration["local_contrast"][0] for one in (once, twice, apart)]
    assert medians[2] < min(medians[:2]) - 0.3


def test_lesions_are_flagged_and_located(typicality, fresh):
    """A lesion of 2 cm is 1.4 cm is flagged at its place, with the sign of its intensity."""
    centre = (15, 14, 12)
    for (source, mask), level in zip(fresh[:6], (0.1, 1.4) * 3, strict=True):
        score = typicality.score(with_lesion(source, mask, centre, level=level), mask)
        assert score.flagged
        assert score.lesion > score.lesion_threshold
        assert np.linalg.norm(np.subtract(score.lesion_voxel, centre)) < 3
        assert np.sign(score.lesion_map[centre]) == np.sign(level - 0.5)


def test_lesions_of_training_people_do_not_hide_new_ones(people, fresh):
    """With lesions in three of ten training people, new lesions are still flagged, without any label."""
    rng = np.random.default_rng(0)
    places = rng.integers((8, 9, 8), (17, 20, 17), (12, 3))
    lesions = [(with_lesion(*scan, place), scan[1]) for scan, place in zip(people[:12], places, strict=True)]
    typicality = fit([*lesions, *people[12:]])
    flagged = [typicality.score(with_lesion(*scan, (15, 14, 12)), scan[1]).flagged for scan in fresh[:10]]
    assert sum(flagged) >= 8
    assert sum(typicality.score(*scan).flagged for scan in fresh[:50]) <= 8


def test_state_restores_equal_scores(typicality, fresh):
    """Arrays are float and the rest is JSON; a restored object scores equally."""
    arrays, rest = typicality.to_state()
    assert {array.dtype.name for array in arrays.values()} <= {"float16", "float32"}
    restored = Typicality.from_state(
        {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(rest))
    )
    first, second = (one.score(*fresh[0]) for one in (typicality, restored))
    assert first.z == second.z
    assert (first.threshold, first.lesion, first.lesion_threshold) == (
        second.threshold, second.lesion, second.lesion_threshold,
    )  # fmt: skip
    assert np.array_equal(first.lesion_map, second.lesion_map)


@pytest.mark.parametrize("spacing_mm", [3.0, 1.9])
def test_grids_of_other_spacing(spacing_mm):
    """On a finer grid the lesion's voxel and map are of that grid, though the map is computed on a coarser one."""
    shape = (36, 40, 37)
    typicality = fit([brain(index, shape) for index in range(16)], spacing_mm)
    source, mask = brain(2000, shape)
    score = typicality.score(with_lesion(source, mask, (24, 21, 18), radius=2.5), mask)
    assert score.lesion_map.shape == shape
    assert np.linalg.norm(np.subtract(score.lesion_voxel, (24, 21, 18))) < 6
    assert score.lesion > score.lesion_threshold
    assert typicality.score(np.where(mask, 1 - source, 0), mask).refused


def test_few_people(people):
    """Ten people are enough, and the rate that they attain is reported; nine are refused."""
    typicality = fit(people[:10])
    assert typicality.rate == pytest.approx(1 / 11)
    source, mask = brain(1000)
    assert typicality.score(np.where(mask, 1 - source, 0), mask).refused
    with pytest.raises(DataError, match=r"9 training people.*at least 10"):
        fit(people[:9])
    with pytest.raises(DataError, match="1 training people"):
        fit(people, subjects=["01"] * PEOPLE)


def test_other_grids_are_refused(typicality):
    """A scan of another size raises a readable error."""
    with pytest.raises(ShapeError, match="expected"):
        typicality.score(*brain(1, (20, 20, 20)))


@pytest.mark.parametrize(
    ("count", "rank", "rate"), [(99, 98, 0.02), (49, 49, 0.02), (10, 10, 1 / 11), (500, 491, 10 / 501)]
)
def test_conformal_threshold(count, rank, rate):
    """The threshold is the score whose rank guarantees the rate, or the largest."""
    threshold, attained = conformal_threshold(np.arange(count, 0.0, -1), 0.02)
    assert threshold == rank
    assert attained == pytest.approx(rate)
