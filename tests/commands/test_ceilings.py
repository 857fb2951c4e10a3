"""Upper bounds from the truth of a simulated cohort, for one person whose registration is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dualflow import cohort
from dualflow.cohort.anatomy import best_affine
from dualflow.cohort.pet_scanner import PET_VOXEL, acquire_pet
from dualflow.commands import ceilings as module
from dualflow.commands.ceilings import TRUE_LAW, _ceilings, _table
from dualflow.commands.true_law import attainable_target, people_of, target_on_grid
from dualflow.config import CEILINGS, parse_config
from dualflow.evaluation.metrics import score
from dualflow.imaging.geometry import FWHM, Volume
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.reference import reference_mask
from dualflow.imaging.regions import region_map
from dualflow.inference.predict import Prediction
from dualflow.layout import Scan, truth_path
from dualflow.modalities import MODALITIES

FDG = MODALITIES["FDG"]


def configure(root, **sections):
    study = {"name": "x", "results": str(root), "side": ["age"], **sections.pop("study", {})}
    return parse_config({
        "study": study,
        "cohort": {"subjects": 3, "law": "hard"},
        "preprocess": {"spacing_mm": 8.0, "shape": [24, 32, 24], **sections.pop("preprocess", {})},
        "evaluate": {"samples": 16, **sections},
    })  # fmt: skip


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A person's scan with the record of a perfect registration: its configuration, PET and record."""
    config = configure(tmp_path_factory.mktemp("study"))
    person = next(iter(people_of(config).values()))
    body = cohort.anatomy(person)
    cohort.write_subject(config.layout.bids, person)
    pet = acquire_pet(person, body)
    record = {
        "source_to_template": best_affine(body).tolist(),
        "target_to_source": pet.to_t1.tolist(),
        "target": {"pet": {}},
        "extra_sources": {},
    }
    return config, person, pet, record


@pytest.fixture
def preprocessed(simulated, monkeypatch):
    """Let the scan be preprocessed with that record; change the record before use."""
    *_, record = simulated
    record = {**record}
    scan = SimpleNamespace(record=lambda: record)
    monkeypatch.setattr(module.PreprocessedScan, "from_manifest", lambda *_: scan)
    return record


@pytest.fixture(scope="module")
def mask(simulated):
    return region_map(simulated[0].preprocess).labels > 0


def test_the_true_law_has_the_best_spread(simulated, preprocessed, mask):
    """Its samples lie around the expected image, and score better than the same samples at another spread."""
    config, person, pet, _ = simulated
    rows = dict(_ceilings(config, Scan(person.label), mask, person))
    assert tuple(rows) == CEILINGS
    truth = rows[TRUE_LAW]
    assert truth.samples.shape == (16, *mask.shape)
    np.testing.assert_array_equal(truth.mean, rows["attainable"].mean)
    assert np.abs(truth.samples.mean(axis=0) - truth.mean)[mask].mean() < 0.03
    target = target_on_grid(config, Scan(person.label), mask)(Volume(pet.measured, pet.affine))
    regions = region_map(config.preprocess)

    def crps(factor):
        samples = truth.mean + factor * (truth.samples - truth.mean)
        prediction = Prediction(truth.mean, factor * truth.std, samples.astype(np.float32))
        return score(prediction, target, mask, regions, FDG)["voxel_crps"]

    assert crps(1) < min(crps(0.3), crps(3))


def test_samples_are_reproducible(simulated, preprocessed, mask):
    """Equal seeds give equal samples, another seed gives others."""
    config, person, *_ = simulated
    config = configure(config.study.results, samples=4)
    first, again, other = (
        dict(_ceilings(each, Scan(person.label), mask, person))[TRUE_LAW].samples
        for each in (config, config, configure(config.study.results, samples=4, seed=1))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_volumes_are_normalised_like_the_target(simulated, preprocessed, mask):
    """The configured reference region has a mean of 1, and a common resolution smooths the volumes."""
    config, person, pet, _ = simulated
    config = configure(config.study.results, preprocess={"reference_region": "cerebellum"})
    sharp = target_on_grid(config, Scan(person.label), mask)(Volume(pet.measured, pet.affine))
    reference = reference_mask("cerebellum", model_grid(config.preprocess)) & mask
    assert sharp[reference].mean() == pytest.approx(1, abs=1e-5)
    preprocessed["target"] = {"pet": {"resolution": {"added_fwhm_mm": 12.0}}}
    smooth = target_on_grid(config, Scan(person.label), mask)(Volume(pet.measured, pet.affine))
    preprocessed["target"] = {"pet": {}}
    blurred = gaussian_filter(pet.measured, 12 / FWHM / np.array(PET_VOXEL), mode="nearest")
    expected = target_on_grid(config, Scan(person.label), mask)(Volume(blurred, pet.affine))
    np.testing.assert_allclose(smooth, expected, atol=1e-4)
    assert np.abs(smooth - sharp)[mask].mean() > 0.02


def test_only_the_embedded_cohort_has_a_known_law(simulated, preprocessed, mask, tmp_path):
    """A study with a dataset has no row of the true law; one without truth has no row at all."""
    config, person, *_ = simulated
    elsewhere = configure(tmp_path, study={"bids": str(config.layout.bids)})
    assert people_of(elsewhere) == {}
    assert list(dict(_ceilings(elsewhere, Scan(person.label), mask, None))) == ["attainable", "oracle"]
    np.testing.assert_array_equal(
        attainable_target(elsewhere, Scan(person.label), mask),
        dict(_ceilings(config, Scan(person.label), mask, None))["attainable"].mean,
    )
    assert not truth_path(tmp_path, Scan(person.label), FDG, "expected").exists()
    without = configure(tmp_path / "other", study={"bids": str(tmp_path)})
    assert not list(_ceilings(without, Scan(person.label), mask, None))
    assert attainable_target(without, Scan(person.label), mask) is None


def test_the_table_has_the_columns_of_every_row():
    """Rows with and without samples share a table; without rows it has its first columns."""
    table = _table([{"model": "oracle", "mae": 1.0}, {"model": "true_law", "mae": 1.0, "voxel_crps": 0.5}], ["model"])
    assert table == "model\tmae\tvoxel_crps\noracle\t1.0\tn/a\ntrue_law\t1.0\t0.5\n"
    assert _table([], ["model", "scan"]) == "model\tscan\n"
