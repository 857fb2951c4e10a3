"""Outcomes of several regions are those of `dualflow analyse`, and tell joint draws from independent ones."""

import numpy as np
import pytest

from dualflow.imaging.meta_regions import meta_region_members, meta_regions
from dualflow.imputation.joint_outcomes import JOINT, PAIR, add_joint_outcomes

REGIONS = (*PAIR, "ctx-lh-superiorfrontal", "ctx-rh-superiorfrontal")


def weights(scans):
    """Every region has the same number of voxels; meta-regions without one are NaN."""
    members = meta_region_members(REGIONS, meta_regions())
    with np.errstate(invalid="ignore"):
        return np.repeat((members / members.sum(axis=1, keepdims=True))[None], scans, axis=0)


def test_joint_outcomes_follow_the_regions():
    values = np.array([[[1.2, 1.0, 0.9, 1.1]]])
    whole, names = add_joint_outcomes(values, REGIONS, weights(1))
    assert names == (*REGIONS, *JOINT)
    np.testing.assert_allclose(whole[0, 0], [1.2, 1.0, 0.9, 1.1, 1.1, 1.1, 0.4 / 2.2])


def test_a_grid_without_the_pair_has_no_asymmetry():
    values = np.ones((2, 3, 2))
    with np.errstate(invalid="ignore"):
        members = meta_region_members(REGIONS[2:], meta_regions())
        shares = np.repeat((members / members.sum(axis=1, keepdims=True))[None], 3, axis=0)
    whole, names = add_joint_outcomes(values, REGIONS[2:], shares)
    assert names == (*REGIONS[2:], *JOINT[:2])
    assert whole.shape == (2, 3, 4)


def test_independent_errors_are_too_narrow_for_a_mean_and_too_wide_for_an_asymmetry():
    rng = np.random.default_rng(0)
    common, noise = rng.normal(0, 0.08, (4000, 1, 1)), rng.normal(0, 0.06, (4000, 1, 4))
    independent = rng.normal(0, 0.1, (4000, 1, 4))
    joint, alone = (add_joint_outcomes(1 + errors, REGIONS, weights(1))[0][:, 0].std(axis=0)
                    for errors in (common + noise, independent))  # fmt: skip
    assert joint[0] == pytest.approx(alone[0], rel=0.05)
    assert alone[4] < 0.8 * joint[4]
    assert alone[6] > 1.5 * joint[6]
