"""Replicates are imputations without some subjects, survive a file, and do not exist where a term needs one subject."""

import numpy as np
import pandas as pd
import pytest

from dualflow.errors import CheckpointError, DataError
from dualflow.imputation.proper_draws import RegionScans, proper_draws
from dualflow.imputation.replicates import MOST_GROUPS, Replicates, replicate, subject_groups

DRAWS = 40


def scans(people: int, regions: int, seed: int) -> RegionScans:
    rng = np.random.default_rng(seed)
    terms = pd.DataFrame({"Intercept": 1.0, "age": rng.normal(size=people)})
    noise = rng.normal(size=(DRAWS, people, regions))
    return RegionScans(terms, rng.normal(size=(people, regions)), noise - noise.mean(axis=0))


@pytest.fixture(params=[3, 12], ids=["own slopes", "slopes of regions inform each other"])
def study(request):
    known, missing = scans(30, request.param, 0), scans(8, request.param, 1)
    rng = np.random.default_rng(2)
    effects = known.terms["age"].to_numpy()[:, None] * np.linspace(0.5, 1.5, request.param)
    measured = 1 + effects + known.prediction + rng.normal(size=known.prediction.shape)
    return measured, known, missing


def replicates(study, groups: np.ndarray | None = None) -> Replicates | None:
    """Replicates of a study whose first 30 scans are measured, with changes of the last 8 alone."""
    groups = np.arange(38) if groups is None else groups
    informs = np.arange(38) < 30
    return replicate(*study, informs, ~informs, groups, 0)


def without(known: RegionScans, rows: np.ndarray) -> RegionScans:
    return RegionScans(known.terms[rows].reset_index(drop=True), known.prediction[rows], known.noise[:, rows])


def expected(measured: np.ndarray, known: RegionScans, missing: RegionScans) -> np.ndarray:
    """With fixed parameters the noise is all that varies, and its mean is 0."""
    return proper_draws(measured, known, missing, 0, proper=False).mean(axis=0)


def test_changes_are_those_of_an_imputation_without_the_group(study):
    measured, known, missing = study
    groups = np.arange(38) // 2
    left_out = replicates(study, groups).left_out
    rows = groups[:30] != 4
    change = expected(measured[rows], without(known, rows), missing) - expected(measured, known, missing)
    assert left_out[4, 30:] == pytest.approx(change, abs=1e-9)
    assert (left_out[15] == 0).all()  # a group without a measured scan
    assert (left_out[:, :30] == 0).all()


def test_shrinkage_has_an_error_only_where_slopes_move(study):
    regions = study[0].shape[1]
    shrinkage = replicates(study).shrinkage
    assert shrinkage.shape == (DRAWS, 38, regions)
    assert (shrinkage[:, 30:].std(axis=0).mean() > 1e-3) == (regions > 10)


def test_unknown_regions_are_unknown_in_replicates(study):
    measured, known, missing = study
    measured[:, 1] = 1.0
    missing.prediction[3, 0] = np.nan
    made = replicates((measured, known, missing))
    for changes in (made.left_out, made.shrinkage):
        assert np.isnan(changes[:, 30:, 1]).all()
        assert np.isnan(changes[:, 33, 0]).all()
        assert np.isfinite(np.delete(changes[:, :, 0], 33, axis=1)).all()


def test_a_term_that_one_subject_informs_has_no_replicates(study):
    measured, known, missing = study
    known, missing = (
        RegionScans(one.terms.assign(rare=(np.arange(len(one.terms)) == 2) * 1.0), one.prediction, one.noise)
        for one in (known, missing)
    )
    assert replicates((measured, known, missing)) is None


def test_a_region_whose_terms_one_subject_informs_is_unknown_in_replicates(study):
    """Of the scans that show it, one is of another age; other regions keep their replicates."""
    measured, known, missing = study
    known.terms.loc[:19, "age"], known.terms.loc[20, "age"] = 0.0, 1.0
    measured[21:, 0] = np.nan
    left_out = replicates((measured, known, missing)).left_out
    assert np.isnan(left_out[:, 30:, 0]).all()
    assert np.isfinite(left_out[:, :, 1:]).all()


def test_weights_are_what_is_left_of_the_leverage(study):
    """A subject with one scan has 1 minus its leverage; one without a measured scan counts in full."""
    weight = replicates(study).weight
    terms = study[1].terms.to_numpy()
    assert weight[:30] == pytest.approx(1 - np.diag(terms @ np.linalg.pinv(terms)))
    assert (weight[30:] == 1).all()
    both = replicates(study, np.arange(38) // 2).weight[0]
    rows = np.arange(30) >= 2
    of_part, of_all = (np.linalg.det(one.T @ one) for one in (terms[rows], terms))
    assert both == pytest.approx(np.sqrt(of_part / of_all))


def test_scans_of_a_subject_are_one_group():
    assert list(subject_groups(["b", "a", "b", "c"])) == [1, 0, 1, 2]
    people = [f"{index:04d}" for index in range(500)]
    assert subject_groups(people).max() == MOST_GROUPS - 1
    first, other = (subject_groups(people, attempt) for attempt in range(2))
    assert (np.bincount(first) == np.bincount(other)).all()
    assert first[5] == first[205]
    assert other[5] != other[205]


def test_replicates_survive_a_file_and_belong_to_one_table(tmp_path):
    rng, drawn = np.random.default_rng(0), np.array([False, True, True, False])
    left_out, shrinkage = np.zeros((4, 4, 3)), np.zeros((5, 4, 3))
    for changes in (left_out, shrinkage):
        changes[:, drawn] = rng.normal(size=(len(changes), 2, 3)).astype(np.float32)
    written = Replicates(np.arange(4), rng.random(4), left_out, shrinkage)
    path = tmp_path / "replicates.safetensors"
    assert Replicates.read(path, drawn, "digest") is None
    written.write(path, drawn, "digest")
    read = Replicates.read(path, drawn, "digest")
    for name in ("group", "weight", "left_out", "shrinkage"):
        assert (getattr(read, name) == getattr(written, name)).all()
    with pytest.raises(DataError, match="another table of imputed regions"):
        Replicates.read(path, drawn, "other")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Replicates.read(path, drawn, "digest")
