"""Simulated FDG uptake by region, age and disease."""

from dataclasses import replace

import numpy as np
import pytest

from dualflow.cohort import participants, uptake_table
from dualflow.cohort.uptake import expected_uptake, person_uptake, regions, tissue_loss


def test_every_region_has_a_base_uptake():
    """The table has 44 grey regions and white matter; grey is about 2.2 times white."""
    table = uptake_table()
    assert list(table.columns) == ["region", "tissue_uptake"]
    assert len(table) == 45
    grey = regions().query("lobe != 'white'")["base"].mean()
    assert grey / regions().loc["Left-Cerebral-White-Matter", "base"] == pytest.approx(2.2, rel=0.05)


def test_hippocampal_loss_lowers_the_ipsilateral_posterior_cingulate():
    """Hippocampal loss on the left has no effect on the right."""
    subject = participants(1, 0)[0]
    loss = np.zeros(len(regions()))
    hippocampal_loss = loss.copy()
    hippocampal_loss[regions().index.get_loc("Left-Hippocampus")] = 0.3
    ratio = expected_uptake(subject, hippocampal_loss) / expected_uptake(subject, loss)
    change = dict(zip(regions().index, np.log(ratio), strict=True))
    assert change["ctx-lh-posteriorcingulate"] < -0.04
    assert change["ctx-rh-posteriorcingulate"] == 0
    assert change["ctx-lh-cuneus"] == 0


def test_individual_deviations_from_the_expected_uptake():
    """They are about 6 %, have mean zero, and correlate more within a lobe than between lobes."""
    subjects = participants(300, 5)
    deviation = []
    for subject in subjects:
        loss = tissue_loss(subject)
        deviation.append(np.log(person_uptake(subject, loss) / expected_uptake(subject, loss)))
    deviation = np.array(deviation)
    grey = np.asarray(regions()["lobe"] != "white")
    assert 0.055 < deviation[:, grey].std(axis=0).mean() < 0.075
    assert abs(deviation.mean()) < 0.006
    column = {name: deviation[:, i] for i, name in enumerate(regions().index)}
    same = np.corrcoef(column["ctx-lh-cuneus"], column["ctx-lh-lingual"])[0, 1]
    other = np.corrcoef(column["ctx-lh-cuneus"], column["ctx-lh-frontalpole"])[0, 1]
    assert same > 0.5 > abs(other) + 0.2


def test_expected_uptake_ignores_the_hidden_severity():
    """Expected uptake does not depend on the part of the metabolic severity that MR does not show."""
    subject = participants(1, 0)[0]
    loss = tissue_loss(subject)
    severe = replace(subject, metabolism=subject.metabolism + 0.5)
    np.testing.assert_array_equal(expected_uptake(subject, loss), expected_uptake(severe, loss))
    assert person_uptake(severe, loss).mean() < person_uptake(subject, loss).mean()


def test_tissue_loss_grows_with_age_and_disease():
    """Loss is a fraction that grows with age and atrophy, and is largest in the hippocampus."""
    subject = replace(participants(1, 0)[0], age=60.0, atrophy=0.0)
    young, old, ill = (
        tissue_loss(p) for p in (subject, replace(subject, age=85.0), replace(subject, age=85.0, atrophy=1.0))
    )
    assert young.mean() < old.mean() < ill.mean()
    assert ((ill >= 0) & (ill <= 0.6)).all()
    assert "Hippocampus" in regions()["merged"].iloc[int(ill.argmax())] + regions()["merged"].iloc[ill.argsort()[-2]]
