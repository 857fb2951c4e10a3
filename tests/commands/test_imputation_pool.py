"""The people of simulated studies."""

import numpy as np
import pandas as pd

from dualflow.commands.imputation_pool import Pool
from dualflow.imaging.meta_regions import meta_region_weights
from dualflow.imaging.regions import from_labels
from dualflow.imputation.formula import Formula
from dualflow.imputation.joint_outcomes import JOINT

PEOPLE = pd.DataFrame({"age": [60.0, 70.0, 80.0]})


def pool(means):
    regions = from_labels(np.ones((2, 2, 2), int), {1: "ctx-lh-cuneus"}, (1.0,) * 3)
    weights = meta_region_weights(regions, np.ones((2, 2, 2), bool))[1]
    return Pool(PEOPLE, [], [], means, np.stack([weights] * len(PEOPLE)), regions)


def test_the_true_law_imputes_targets_of_other_studies():
    """A person drawn twice gives two of the study's targets; neither is imputed, and no target twice in one scan."""
    means = [np.arange(10 * person, 10 * person + 8.0)[:, None] for person in range(3)]
    drawn = pool(means).true_draws(np.array([2, 0, 2]), np.array([1, 5, 2]), 6, np.random.default_rng(0))[..., 0]
    assert drawn.shape == (6, 3)
    assert set(drawn[:, 1]) <= set(means[0][:, 0]) - {5.0}
    for column in (0, 2):
        assert set(drawn[:, column]) == {20.0, 23.0, 24.0, 25.0, 26.0, 27.0}


def test_true_effects_are_those_of_expected_values():
    """The mean over a person's targets, in units of the outcome for a year of age."""
    means = [np.array([[age / 100 - 0.1], [age / 100 + 0.1]]) for age in PEOPLE["age"]]
    effects = pool(means).true_effects(Formula("age", {})).set_index(["region", "term"])["truth"]
    np.testing.assert_allclose(effects["ctx-lh-cuneus", "age"], 0.01)


def test_outcomes_have_the_weights_of_their_person():
    study = pool([np.ones((2, 1))] * 3)
    values, names = study.outcomes(np.ones((5, 4, 1)), np.array([0, 0, 2, 1]))
    assert values.shape == (5, 4, len(names))
    assert set(JOINT[:2]) <= set(names)
