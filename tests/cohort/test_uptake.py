from dataclasses import replace

import numpy as np
import pytest

from dualflow.cohort import participants, uptake_table
from dualflow.cohort.uptake import effect_table, expected_uptake, person_uptake, regions, tissue_loss


def test_every_region_has_a_base_figure():
    """The table holds 44 grey regions and white matter, and grey lies about 2.2 above white."""
    table = uptake_table()
    assert list(table.columns) == ["region", "tissue_uptake"]
    assert len(table) == 45
    grey = regions().query("lobe != 'white'")["base"].mean()
    assert grey / regions().loc["Left-Cerebral-White-Matter", "base"] == pytest.approx(2.2, rel=0.05)


def test_disease_has_the_known_pattern():
    """AD lowers posterior cingulate and parietal uptake and spares sensorimotor, visual and basal ganglia."""
    effect = effect_table()["ad_at_72"]
    assert effect["ctx-lh-posteriorcingulate"] < -0.2
    assert effect["ctx-rh-inferiorparietal"] < -0.15
    for spared in ("ctx-lh-precentral", "ctx-rh-postcentral", "ctx-lh-pericalcarine", "Left-Putamen"):
        assert effect[spared] > -0.03


def test_age_interacts_with_disease():
    """Disease lowers uptake more at 60 than at 72."""
    table = effect_table()
    assert table.loc["ctx-lh-precuneus", "ad_at_60"] < 1.1 * table.loc["ctx-lh-precuneus", "ad_at_72"]


def test_lost_hippocampus_lowers_posterior_cingulate_on_its_side():
    """A remote effect: hippocampal loss on the left acts on the left posterior cingulate only."""
    person = participants(1, 0)[0]
    loss = np.zeros(len(regions()))
    more = loss.copy()
    more[regions().index.get_loc("Left-Hippocampus")] = 0.3
    change = dict(
        zip(regions().index, np.log(expected_uptake(person, more) / expected_uptake(person, loss)), strict=True)
    )
    assert change["ctx-lh-posteriorcingulate"] < -0.04
    assert change["ctx-rh-posteriorcingulate"] == 0
    assert change["ctx-lh-cuneus"] == 0


def test_deviation_between_people_has_mean_zero_and_stated_size():
    """Own over expected uptake: about 6 %, without bias, correlated within a lobe more than across lobes."""
    people = participants(300, 5)
    deviation = []
    for person in people:
        loss = tissue_loss(person)
        deviation.append(np.log(person_uptake(person, loss) / expected_uptake(person, loss)))
    deviation = np.array(deviation)
    grey = np.asarray(regions()["lobe"] != "white")
    assert 0.055 < deviation[:, grey].std(axis=0).mean() < 0.075
    assert abs(deviation.mean()) < 0.006
    column = {name: deviation[:, i] for i, name in enumerate(regions().index)}
    same = np.corrcoef(column["ctx-lh-cuneus"], column["ctx-lh-lingual"])[0, 1]
    other = np.corrcoef(column["ctx-lh-cuneus"], column["ctx-lh-frontalpole"])[0, 1]
    assert same > 0.5 > abs(other) + 0.2


def test_expected_uptake_knows_no_hidden_severity():
    """Expected uptake does not change with the part of the metabolic severity that nothing shows."""
    person = participants(1, 0)[0]
    loss = tissue_loss(person)
    other = replace(person, metabolism=person.metabolism + 0.5)
    np.testing.assert_array_equal(expected_uptake(person, loss), expected_uptake(other, loss))
    assert person_uptake(other, loss).mean() < person_uptake(person, loss).mean()


def test_tissue_loss_grows_with_age_and_disease():
    """Loss is a fraction, larger in the old and the ill, largest in the hippocampus of AD."""
    person = replace(participants(1, 0)[0], age=60.0, atrophy=0.0)
    young, old, ill = (
        tissue_loss(p) for p in (person, replace(person, age=85.0), replace(person, age=85.0, atrophy=1.0))
    )
    assert young.mean() < old.mean() < ill.mean()
    assert ((ill >= 0) & (ill <= 0.6)).all()
    assert "Hippocampus" in regions()["merged"].iloc[int(ill.argmax())] + regions()["merged"].iloc[ill.argsort()[-2]]
