"""A simulated study: how PET is hidden, and what the methods take as known."""

import numpy as np
import pandas as pd
import pytest
import torch

from dualflow.cli.bench_commands import HIDDEN
from dualflow.commands.imputation_pool import Pool
from dualflow.commands.simulated_study import FORMULA, HIDING, NULL, NULL_TERM, SimulatedStudy
from dualflow.config import parse_config
from dualflow.imaging.meta_regions import meta_region_weights
from dualflow.imaging.regions import RegionMap
from dualflow.imputation.group_models import COMPLETE, analyse_regions
from dualflow.imputation.joint_outcomes import SIGNATURE
from dualflow.imputation.paired_models import METHODS
from dualflow.imputation.region_values import region_values
from dualflow.imputation.study_tables import ALL, FIXED, JACKKNIFE, PROPER, SINGLE, TRUE_LAW, fillings
from tests.support.imputed_study import ImputedStudy
from tests.support.region_cohort import region_labels, region_people

REGIONS = ("ctx-lh-inferiorparietal", "ctx-rh-inferiorparietal", "Left-Caudate", "Right-Caudate")

PEOPLE = pd.DataFrame(
    {
        "diagnosis": np.repeat(["CN", "AD"], 500),
        "age": np.random.default_rng(0).normal(70, 8, 1000),
        "sex": ["F", "M"] * 500,
    }
)


def test_half_is_hidden_at_random():
    hidden = HIDING["random"].hide(PEOPLE, np.random.default_rng(0))
    assert hidden.sum() == 500
    assert 0.4 < hidden[:500].mean() < 0.6


def test_more_of_the_patients_and_of_the_old_are_hidden():
    hidden = HIDING["diagnosis"].hide(PEOPLE, np.random.default_rng(0))
    assert hidden[:500].mean() == pytest.approx(0.26, abs=0.06)
    assert hidden[500:].mean() == pytest.approx(0.5, abs=0.06)
    assert PEOPLE["age"][hidden].mean() > PEOPLE["age"][~hidden].mean() + 1


def test_the_methods_differ_in_what_they_take_as_known():
    """On one study: proper draws vary most, and single imputation not at all."""
    study = ImputedStudy.make(40)
    items = [item for dataset in study.splits.values() for item in dataset.items]
    values = [region_values(study.model, item, study.regions, 30, index) for index, item in enumerate(items)]
    observed = np.array(["target" in item for item in items])
    terms = pd.DataFrame({"Intercept": 1.0, "age": [float(item["side"][0]) for item in items]})
    filled = fillings(values, observed, terms, 0)
    spread = {name: draws.std(axis=0).mean() for name, draws in filled.items()}
    assert spread[SINGLE] == 0
    assert spread[PROPER] > spread[FIXED] > 0
    measured = np.stack([one.measured for one in values])
    tables = np.repeat(measured[None], 30, axis=0)
    tables[:, ~observed] = filled[PROPER]
    table = analyse_regions(tables, observed, terms, [str(index) for index in range(40)], study.regions.names)
    assert (table.loc[table["method"] == "multiple", "fmi"] > 0).all()


def test_the_null_term_is_a_term_of_the_analysis():
    table = PEOPLE.assign(**{NULL: np.tile(["A", "B"], 500)})
    assert NULL_TERM in FORMULA.design(table)


def test_the_command_offers_every_way_of_hiding():
    assert tuple(HIDING) == HIDDEN


@pytest.fixture(scope="module")
def pool():
    """24 people with two targets each, on a grid of four slabs."""
    people = region_people(24)
    regions = RegionMap(region_labels().numpy(), REGIONS, (4.0, 4.0, 4.0))
    sides = torch.stack([one["side"] for one in people]).numpy()
    labels = [one["scan"].removeprefix("sub-") for one in people]
    table = pd.DataFrame({"label": labels, "age": 70 + 8 * sides[:, 0], "sex": ["F", "M"] * 12})
    table["diagnosis"] = np.where(sides[:, 1] > 0, "AD", "CN")
    rng = np.random.default_rng(0)
    targets, means, weights = [], [], []
    for one in people:
        target, mask = one.pop("target").numpy(), one["mask"][0].numpy()
        targets.append(np.stack([target[0] + rng.normal(0, 0.02) for _ in range(30)]).astype(np.float16))
        means.append(regions.means(targets[-1].astype(np.float32), mask))
        weights.append(meta_region_weights(regions, mask)[1])
    return Pool(table, people, targets, means, np.stack(weights), regions)


def simulated(pool, way="random"):
    members = np.random.default_rng(3).integers(24, size=60)
    places = np.arange(60) % 8
    return SimulatedStudy.make(pool, members, places, way, 5, [0, 1])


def test_ways_of_hiding_share_people_and_coins(pool):
    first, second = simulated(pool), simulated(pool, "diagnosis")
    pd.testing.assert_frame_equal(first.table, second.table)
    assert (first.observed != second.observed).any()
    assert first.true_draws.shape == (5, 30, len(REGIONS))
    assert second.hidden == "by diagnosis and age"


def test_a_study_is_the_same_for_all_models(pool, tmp_path, monkeypatch):
    """Complete cases are equal, draws are not; models with one mean share its fit."""
    monkeypatch.setattr("dualflow.training.build_baseline.region_map", lambda _: pool.regions)
    study, config = simulated(pool), parse_config({"study": {"name": "x", "results": str(tmp_path)}})
    first, second = (
        study.estimates(config, model, tmp_path).set_index(["method", "region", "term"])["estimate"]
        for model in ("local_linear_spread", "local_linear_person_scale")
    )
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert set(first.index.get_level_values("method")) == {ALL, COMPLETE, JACKKNIFE, TRUE_LAW, *METHODS[1:]}
    assert {*REGIONS, SIGNATURE} <= set(first.index.get_level_values("region"))
    for method in (ALL, COMPLETE, TRUE_LAW):
        pd.testing.assert_series_equal(first[method], second[method])
    assert np.allclose(first[SINGLE], second[SINGLE])
    assert not np.allclose(first[PROPER], second[PROPER])
