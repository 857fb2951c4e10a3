"""The index refuses a configuration whose analyses would fail after the training."""

from types import SimpleNamespace

import pandas as pd
import pytest

from dualflow.commands import make_index as module
from dualflow.commands.make_index import make_index, require_columns
from dualflow.config import ImputeConfig, parse_config
from dualflow.errors import ConfigError

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
