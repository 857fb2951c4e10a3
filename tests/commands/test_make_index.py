"""The index refuses a configuration whose analyses would fail after the training."""

from types import SimpleNamespace

import pandas as pd
import pytest

from dualflow.commands import make_index as module
from dualflow.commands.make_index import make_index, require_analyses, require_columns, require_test_scans
from dualflow.config import ImputeConfig, parse_config
from dualflow.errors import ConfigError, DataError

SIDE = ("age", "diagnosis")


def test_columns_of_the_study_can_be_analysed() -> None:
    analyses = {"main": "suvr ~ diagnosis + age"}
    require_columns(ImputeConfig(analyses=analyses, terms="diagnosis * age", references={"diagnosis": "CN"}), SIDE)
    require_columns(ImputeConfig(), ())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"analyses": {"main": "suvr ~ age + weight"}}, "impute.analyses.main names weight, which is no column"),
        ({"terms": "age * sex"}, "impute.terms names sex, which is no column"),
        ({"references": {"diagnosys": "CN"}}, "impute.references names diagnosys, which is no column"),
        ({"analyses": {"main": "suvr ~ age +"}}, "does not parse"),
    ],
)
def test_what_a_later_step_would_refuse_ends_the_run_before_the_training(values: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_columns(ImputeConfig(**values), SIDE)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"impute": {"analyses": {"main": "suvr ~ diagnosis"}}}, "impute.analyses.main names diagnosis"),
        ({"evaluate": {"classify": "diagnosis"}}, "each value of code belongs to one diagnosis"),
    ],
)
def test_the_index_checks_its_own_columns(monkeypatch, sections: dict, words: str) -> None:
    """A label cannot be analysed if targets are missing, nor classified if a column is a code of it."""
    people = range(12)
    table = {"subject": [str(index) for index in people], "target": ["", *["pet.nii.gz"] * 11], "age": people}
    table |= {"code": [index % 2 for index in people], "diagnosis": ["AD" if index % 2 else "CN" for index in people]}
    monkeypatch.setattr(module, "study_fingerprint", lambda _: "digest")
    monkeypatch.setattr(module, "build_index", lambda *_: SimpleNamespace(pairs=pd.DataFrame(table)))
    study = {"name": "t", "side": ["age", "code"], "labels": ["diagnosis"]}
    with pytest.raises(ConfigError) as caught:
        make_index(parse_config({"study": study, **sections}))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("split", "words"),
    [({"test_subjects": ["1"]}, "no usable pair of 1"), ({"test": 0.2}, "2 people have a pair"), ({"test": 0}, None)],
)
def test_a_split_without_test_people_ends_the_run_before_the_training(monkeypatch, split, words) -> None:
    """All scores are those of test people; without a share for them, trainings alone are wanted."""
    table = {"subject": ["1", "2", "3"], "target": ["", "a", "b"], "split": ["convert", "train", "train"]}
    monkeypatch.setattr(module, "study_fingerprint", lambda _: "digest")
    monkeypatch.setattr(module, "build_index", lambda *_: SimpleNamespace(pairs=pd.DataFrame(table)))
    config = parse_config({"study": {"name": "t"}, "split": split})
    if words is None:
        require_test_scans(config, pd.DataFrame(table))
    else:
        with pytest.raises(ConfigError, match=f"nobody is left to score the models on .*{words}"):
            make_index(config)


@pytest.mark.parametrize(("patients", "words"), [(4, "4 held-out people are 'AD'"), (0, "20 held-out people are 'CN'")])
def test_too_few_people_to_classify_end_the_run_before_the_training(monkeypatch, patients: int, words: str) -> None:
    """The evaluation would refuse them when every model is trained."""
    people = range(20)
    table = {"subject": [str(index) for index in people], "target": "pet.nii.gz", "split": "test", "age": people}
    table |= {"diagnosis": ["AD" if index < patients else "CN" for index in people]}
    monkeypatch.setattr(module, "study_fingerprint", lambda _: "digest")
    monkeypatch.setattr(module, "build_index", lambda *_: SimpleNamespace(pairs=pd.DataFrame(table)))
    study = {"name": "t", "side": ["age"], "labels": ["diagnosis"]}
    with pytest.raises(DataError) as caught:
        make_index(parse_config({"study": study, "evaluate": {"classify": "diagnosis"}}))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("analysis", "words"),
    [
        ("suvr ~ 1", "names no column"),
        ("suvr ~ diagnosis * age", "is not among the terms of the imputation"),
        ("suvr ~ site", "site is A in every scan"),
        ("suvr ~ age + age^2", "age^2 is the column itself"),
    ],
)
def test_an_analysis_that_would_fail_at_the_end_fails_at_the_index(analysis: str, words: str) -> None:
    people = pd.DataFrame({"age": [60, 70, 80, 65], "diagnosis": ["AD", "CN", "AD", "CN"], "site": "A"})
    side = ["age", "diagnosis", "site"]
    with pytest.raises(ConfigError, match=r"^impute\.analyses\.main: ") as caught:
        require_analyses(ImputeConfig(analyses={"main": analysis}), side, people)
    assert words in str(caught.value)
    require_analyses(ImputeConfig(analyses={"main": "suvr ~ age"}), side, people)


def test_constant_terms_of_the_imputation_are_blamed_on_it() -> None:
    """Not on an analysis that does not name them, and without one too."""
    people = pd.DataFrame({"age": [60, 70, 80, 65], "site": "A"})
    for analyses in ({}, {"main": "suvr ~ age"}):
        with pytest.raises(ConfigError, match=r"^impute\.terms: formula 'age \+ site': site is A in every scan"):
            require_analyses(ImputeConfig(analyses=analyses, terms="age + site"), ["age", "site"], people)


def test_without_missing_targets_any_column_can_be_analysed() -> None:
    """Nothing is drawn that could be ignorant of a term."""
    people = pd.DataFrame({"age": [60, 70, 80, 65], "diagnosis": ["AD", "CN", "AD", "CN"]})
    require_analyses(ImputeConfig(analyses={"main": "suvr ~ diagnosis * age"}), None, people)
