"""Downstream classification: it finds what is there, nothing where nothing is, and keeps people apart."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dualflow.commands.evaluate import _downstream
from dualflow.config import parse_config
from dualflow.errors import ConfigError, DataError
from dualflow.evaluation import downstream
from dualflow.evaluation.downstream import _area, _Pairs, classify, feature_sets, require_no_leakage


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(downstream, "REPEATS", 1)
    monkeypatch.setattr(downstream, "RESAMPLES", 100)
    monkeypatch.setattr(downstream, "PENALTIES", (0.1,))
    monkeypatch.setattr(downstream, "FOLDS", 3)


def people(count=60, signal=2.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array(["AD", "CN"])[np.arange(count) % 2]
    values = rng.normal(size=(count, 5))
    values[:, 0] += signal * (labels == "AD")
    return values, labels.tolist(), [f"P{index}" for index in range(count)]


def test_a_signal_is_worth_its_area_and_noise_is_worth_one_half():
    signal, labels, subjects = people()
    noise = people(signal=0.0, seed=5)[0]
    table = classify({"signal": signal, "noise": noise}, labels, subjects).set_index("features")
    assert table.loc["signal", "auc"] == pytest.approx(0.92, abs=0.07)  # Phi(2 / sqrt 2)
    assert table.loc["noise", "auc"] == pytest.approx(0.5, abs=0.15)  # two standard errors of 60 people
    assert table.loc["signal", "low"] < table.loc["signal", "auc"] < table.loc["signal", "high"]


def test_only_people_whom_one_classifier_judged_compare():
    """Another fold's classifier may give everyone a lower probability; within a fold both orders are right here."""
    inside, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    column = np.array([0.9, 0.6, 0.4, 0.1])
    pairs = _Pairs.of(inside, 0, [(np.column_stack([column, 1 - column]), fold)] * 2)
    assert _area([pairs], np.ones(4)) == 1
    other = _Pairs.of(inside, 0, [(np.column_stack([column, 1 - column]), np.zeros(4, int))])
    assert _area([other], np.ones(4)) == 0.75
    assert _area([other], np.array([0, 1, 1, 0])) == 0
    assert np.isnan(_area([pairs], np.array([1, 0, 0, 1])))


@pytest.mark.parametrize(("count", "signal"), [(38, 2.0), (60, 200.0)])
def test_few_people_and_perfect_classifiers_have_no_interval(count, signal):
    """With 19 of a class intervals are too narrow; an area of 1 in all resamples would be an interval without width."""
    values, labels, subjects = people(count, signal)
    row = classify({"x": values}, labels, subjects).iloc[0]
    assert 0.8 < row["auc"] <= 1
    assert np.isnan([row["low"], row["high"]]).all()


def test_visits_of_a_person_are_never_on_both_sides():
    """Features that only identify the person predict nothing."""
    rng = np.random.default_rng(0)
    fingerprints = np.repeat(rng.normal(size=(30, 40)), 2, axis=0)
    labels = np.repeat(np.array(["AD", "CN"])[np.arange(30) % 2], 2).tolist()
    subjects = np.repeat([f"P{index}" for index in range(30)], 2).tolist()
    area = classify({"fingerprint": fingerprints}, labels, subjects)["auc"][0]
    assert area < 0.75


def test_a_person_counts_once_whatever_the_number_of_visits():
    """Twenty visits around the values of each of two people leave areas, intervals and accuracy as they are."""
    values, labels, subjects = people()
    rows = np.repeat(np.arange(60), np.where(np.isin(np.arange(60), [3, 30]), 20, 1))
    change = np.where(np.bincount(rows)[rows] > 1, (-1.0) ** np.arange(len(rows)), 0.0)[:, None]
    once = classify({"x": values}, labels, subjects)
    often = classify({"x": values[rows] + change}, [labels[row] for row in rows], [subjects[row] for row in rows])
    pd.testing.assert_frame_equal(once, often, rtol=1e-9)


def test_unknown_regions_are_left_out():
    real, source, synthetic = (np.full((4, 3), value) for value in (1.0, 2.0, 3.0))
    real[2, 1] = np.nan
    sets = feature_sets(real, source, synthetic)
    assert {name: values.shape[1] for name, values in sets.items()} == {
        "real target": 2, "source": 3, "synthetic target": 3, "source + synthetic target": 6,
    }  # fmt: skip


def test_a_label_may_change_between_sessions():
    """The subject counts in both classes; a class that a fold lacks has probability 0 there."""
    values, labels, subjects = people()
    labels[::10] = ["MCI"] * 6
    later = ["AD", *labels[1:]]
    table = classify({"x": np.concatenate([values, values])}, [*labels, *later], [*subjects, *subjects])
    assert table.loc[0, "classes"] == 3
    assert 0.5 < table.loc[0, "auc"] < 1


def test_features_without_a_known_region_are_refused():
    _, labels, subjects = people()
    with pytest.raises(DataError, match="real target: no region is known in all held-out scans"):
        classify(feature_sets(*[np.full((60, 2), np.nan)] * 3), labels, subjects)


def test_a_class_with_few_people_is_refused():
    values, _, subjects = people(count=16)
    with pytest.raises(DataError, match="2 held-out people are 'AD'"):
        classify({"x": values}, ["AD" if index < 2 else "CN" for index in range(16)], subjects)


def test_without_labels_there_is_one_clear_line():
    with pytest.raises(DataError, match="no held-out person has a known label"):
        classify({"x": np.zeros((0, 2))}, [], [])


def test_what_the_model_knows_cannot_be_classified():
    study = {"name": "x", "side": ["age", "diagnosis"]}
    with pytest.raises(ConfigError, match=r"gives the answer away; move diagnosis to study\.labels"):
        parse_config({"study": study, "evaluate": {"classify": "diagnosis"}})
    with pytest.raises(ConfigError, match=r"not in study\.labels"):
        parse_config({"study": {"name": "x"}, "evaluate": {"classify": "diagnosis"}})
    with pytest.raises(ConfigError, match="in side and in labels"):
        parse_config({"study": study | {"labels": ["diagnosis"]}})


def test_a_column_that_tells_the_label_is_refused():
    """A code of the diagnosis does; an age in days that each person has alone, or sex, does not."""
    labels = np.array(["AD", "CN", "MCI"])[np.arange(30) % 3]
    table = pd.DataFrame({"subject": [f"P{index}" for index in range(30)], "diagnosis": labels})
    table = table.assign(code=(np.arange(30) % 3).astype(str), days=np.arange(30.0), sex=np.arange(30) % 2)
    table.loc[0, "code"] = None
    sessions = pd.concat([table, table], ignore_index=True)
    require_no_leakage("diagnosis", ["days", "sex", "absent"], sessions)
    with pytest.raises(ConfigError, match=r"each value of code belongs to one diagnosis.*leave code out"):
        require_no_leakage("diagnosis", ["sex", "code"], sessions)


def test_all_visits_count_when_a_column_tells_the_label():
    """A code that first visits lack is noticed; one that tells the label of the first visit alone is allowed."""
    first = pd.DataFrame(
        {"subject": [f"P{index}" for index in range(30)], "diagnosis": ["AD", "CN"] * 15, "code": None}
    )
    later = first.assign(code=[1.0, 2.0] * 15)
    with pytest.raises(ConfigError, match="each value of code belongs to one diagnosis"):
        require_no_leakage("diagnosis", ["code"], pd.concat([first, later], ignore_index=True))
    changed = later.assign(diagnosis=["AD", "AD"] * 15)
    require_no_leakage("diagnosis", ["code"], pd.concat([later, changed], ignore_index=True))


@pytest.mark.parametrize(("name", "words"), [("diagnosis", "takes diagnosis"), ("code", "each value of code")])
def test_models_that_know_the_label_are_not_scored(name, words):
    """Such as those of an earlier configuration."""
    config = SimpleNamespace(evaluate=SimpleNamespace(classify="diagnosis"))
    card = SimpleNamespace(label="flow, seed 0", side=SimpleNamespace(columns=[SimpleNamespace(name=name)]))
    pairs = pd.DataFrame({"subject": list("abcd"), "diagnosis": ["AD", "CN"] * 2, "code": [0, 1] * 2})
    with pytest.raises(ConfigError, match=words):
        _downstream(config, SimpleNamespace(card=card), pairs, None, None, [])
