"""Formulas name columns of a table; they run no code, and what cannot be estimated is one clear line."""

import re

import numpy as np
import pandas as pd
import pytest

from dualflow.errors import ConfigError, DataError
from dualflow.imputation.formula import Formula, lies_in, quoted, require_full_rank

PEOPLE = pd.DataFrame(
    {
        "diagnosis": ["CN", "AD", "MCI", "CN", None, "AD"],
        "age": [60.0, 70.0, 80.0, 65.0, 75.0, 62.0],
        "sex": ["F", "M", "F", "M", "F", "F"],
        "site": ["A"] * 6,
    }
)


def test_design_has_named_coefficients_and_nan_for_unknown_values() -> None:
    design = Formula.parse("suvr ~ diagnosis + age * sex", {"diagnosis": "CN"}).design(PEOPLE)
    assert set(design) == {"Intercept", "diagnosis=AD", "diagnosis=MCI", "age", "sex=M", "age:sex=M"}
    assert list(design["diagnosis=AD"].fillna(-1)) == [0, 1, 0, 0, -1, 1]
    assert design.loc[4].isna().all()


def test_the_first_level_is_the_reference_unless_another_is_named() -> None:
    assert "diagnosis=CN" in Formula.parse("diagnosis").design(PEOPLE)
    assert "diagnosis=AD" in Formula.parse("diagnosis", {"diagnosis": "CN"}).design(PEOPLE)


@pytest.mark.parametrize(
    ("text", "references", "words"),
    [
        ("suvr ~ np.log(age)", {}, "np.log(age) is not a column"),
        ("suvr ~ C(site)", {}, "C(site) is not a column"),
        ("volume ~ age", {}, "models 'volume'"),
        ("suvr ~ age + (", {}, "does not parse"),
        ("suvr ~ 0 + age", {}, "the intercept is implied"),
        ("age - 1", {}, "the intercept is implied"),
        ("suvr ~ age | sex", {}, "has several parts"),
        ("suvr ~ 10:age", {}, "scales its coefficient too"),
        ("suvr ~ weight", {}, "no column weight"),
        ("suvr ~ age + age^2", {}, "age^2 is the column itself"),
        ("suvr ~ age + age**2", {}, "age**2 is the column itself"),
        ("suvr ~ age*age", {}, "a product of age with itself is age alone"),
        ("suvr ~ sex + age:age", {}, "a product of age with itself"),
        ("suvr ~ `a b`:`a b`", {}, "a product of `a b` with itself"),
        ("suvr ~ age - sex", {}, "there is no sex to subtract"),
        ("suvr ~ age-onset", {}, "there is no onset to subtract"),
        ("suvr ~ -age", {}, "there is no age to subtract"),
        ("suvr ~ age + (sex - onset)", {}, "there is no onset to subtract"),
        ("suvr ~ age + sex - (sex + onset)", {}, "there is no onset to subtract"),
        ("suvr ~ (age * age)", {}, "a product of age with itself"),
        ("suvr ~ age * sex * age", {}, "a product of age with itself"),
        ("suvr ~ age + (age) ** 2", {}, "age**2 is the column itself"),
        ("suvr ~ ((age))^2", {}, "age^2 is the column itself"),
        ("suvr ~ (age + age)^2", {}, "age^2 is the column itself"),
        ("suvr ~ age/age", {}, "a product of age with itself"),
        ("suvr ~ site", {}, "site is A in every scan"),
        ("suvr ~ diagnosis", {"diagnosis": "HC"}, "choose from: AD, CN, MCI"),
        ("suvr ~ age", {"diagnosis": "CN"}, "no term diagnosis"),
    ],
)
def test_a_formula_that_cannot_be_used_is_one_line(text: str, references: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        Formula.parse(text, references).design(PEOPLE)


def test_a_term_of_a_product_may_be_subtracted() -> None:
    """And a name may come again in another term."""
    assert Formula.parse("age*sex - sex").variables == ("age", "sex")
    assert Formula.parse("age:sex + age").variables == ("age", "sex")
    assert Formula.parse("age * (sex + diagnosis) - age:diagnosis").variables == ("age", "diagnosis", "sex")
    assert Formula.parse("diagnosis/age/sex").variables == ("age", "diagnosis", "sex")
    assert Formula.parse("(age + sex + diagnosis)**2").variables == ("age", "diagnosis", "sex")


def test_code_in_a_formula_does_not_run(tmp_path) -> None:
    witness = tmp_path / "ran"
    with pytest.raises(ConfigError):
        Formula.parse(f"suvr ~ __import__('pathlib').Path('{witness}').touch()").design(PEOPLE)
    assert not witness.exists()


def test_collinear_and_constant_terms_are_named() -> None:
    design = Formula.parse("age + sex").design(PEOPLE)
    with pytest.raises(DataError, match="twice is a combination of Intercept, age, sex=M"):
        require_full_rank(design.assign(twice=2 * design["age"] + 1), "terms")
    with pytest.raises(DataError, match="sex=M is the same in all 4 scans"):
        require_full_rank(design[design["sex=M"] == 0], "terms")


def test_lies_in_tells_which_columns_another_design_spans() -> None:
    full = Formula.parse("age * sex").design(PEOPLE)
    part = Formula.parse("age + sex").design(PEOPLE)
    assert lies_in(part.to_numpy(), full.to_numpy()).all()
    assert list(lies_in(full.to_numpy(), part.to_numpy())) == [name != "age:sex=M" for name in full]


def test_the_square_of_a_year_lies_not_in_the_year() -> None:
    """How a column varies counts, not how large it is; a date of eight digits lies in itself."""
    year, date = np.array([2005.0, 2006, 2007, 2008, 2009, 2010]), 20050101.0 + 10000 * np.arange(6)
    space = np.column_stack([np.ones(6), year])
    assert list(lies_in(np.column_stack([space, year**2, 2 * year - 4000]), space)) == [True, True, False, True]
    assert lies_in(np.column_stack([date]), np.column_stack([np.ones(6), date])).all()


def test_a_column_that_is_no_word_is_quoted() -> None:
    """Otherwise apoe-e4 would be apoe less e4."""
    people = PEOPLE.rename(columns={"age": "apoe-e4"})
    formula = Formula.parse(f"{quoted('apoe-e4')} + {quoted('sex')}")
    assert formula.text == "`apoe-e4` + sex"
    assert set(formula.variables) == {"apoe-e4", "sex"}
    assert set(formula.design(people)) == {"Intercept", "apoe-e4", "sex=M"}


def test_an_intercept_may_be_written() -> None:
    assert list(Formula.parse("suvr ~ 1 + age").design(PEOPLE)) == ["Intercept", "age"]


def test_a_formula_without_terms_is_the_intercept() -> None:
    assert np.array_equal(Formula.parse("1").design(PEOPLE), np.ones((6, 1)))


def test_levels_of_whole_numbers_have_no_decimals() -> None:
    """A column 0/1 with an unknown value is read as decimal numbers."""
    table = pd.DataFrame({"sex": [0.0, 1.0, None, 1.0]})
    design = Formula.parse("sex", {"sex": "0"}).design(table)
    assert list(design) == ["Intercept", "sex=1"]
    assert design["sex=1"].tolist()[:2] == [0.0, 1.0]
    assert design.iloc[2].isna().all()


def test_a_level_of_incomplete_rows_alone_has_no_coefficient() -> None:
    """It would be 0 in every scan that is analysed, and stop the analysis of the other levels."""
    table = PEOPLE.assign(age=PEOPLE["age"].where(PEOPLE["diagnosis"] != "MCI"))
    design = Formula.parse("diagnosis + age", {"diagnosis": "CN"}).design(table)
    assert list(design) == ["Intercept", "diagnosis=AD", "age"]
    require_full_rank(design.dropna(), "analysis")
    assert list(Formula.parse("diagnosis + age").design(table)) == ["Intercept", "diagnosis=CN", "age"]


def test_reference_levels_are_those_of_the_design() -> None:
    """The first level with a complete row, where none is named; numbers have none."""
    assert Formula.parse("diagnosis + age + sex").reference_levels(PEOPLE) == {"diagnosis": "AD", "sex": "F"}
    assert Formula.parse("diagnosis", {"diagnosis": "CN"}).reference_levels(PEOPLE) == {"diagnosis": "CN"}
    table = PEOPLE.assign(age=PEOPLE["age"].where(PEOPLE["diagnosis"] != "AD"))
    assert Formula.parse("diagnosis + age").reference_levels(table) == {"diagnosis": "CN"}


def test_a_reference_of_incomplete_rows_alone_is_refused() -> None:
    """Another level would silently take its place."""
    table = PEOPLE.assign(age=PEOPLE["age"].where(PEOPLE["diagnosis"] != "CN"))
    with pytest.raises(ConfigError, match="no scan with it has known values of age, diagnosis; choose from: AD, MCI"):
        Formula.parse("diagnosis + age", {"diagnosis": "CN"}).design(table)
