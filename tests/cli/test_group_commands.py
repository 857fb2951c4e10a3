"""Default names of analyses."""

import pytest

from dualflow.cli.group_commands import analysis_name


@pytest.mark.parametrize(
    ("formula", "asymmetries", "ratios", "expected"),
    [
        ("suvr ~ age * sex", False, (), "age-x-sex"),
        ("suvr ~ age:sex", False, (), "age-by-sex"),
        ("suvr ~ tau_load + age", True, (), "tau_load-age-asymmetries"),
        ("suvr~age", False, ("Hippocampus/Pons",), "age-Hippocampus-Pons"),
    ],
)
def test_the_name_tells_the_formula(formula, asymmetries, ratios, expected):
    """Terms, asymmetries and ratios are parts of the name."""
    assert analysis_name(formula, asymmetries, ratios) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("age + sex", "age - sex"),
        ("age + sex", "age/sex"),
        ("(age + sex):site", "age + sex:site"),
        ("a + b", "(a + b)**2"),
    ],
)
def test_other_formulas_have_other_names(one, other):
    """Otherwise the second analysis would replace the first without a word."""
    assert analysis_name(f"suvr ~ {one}") != analysis_name(f"suvr ~ {other}")


def test_references_are_part_of_the_name():
    """Their order on the command line is not; another reference is another table of effects."""
    names = [analysis_name("suvr ~ diagnosis", references=given) for given in ([], ["diagnosis=CN"], ["diagnosis=AD"])]
    assert names == ["diagnosis", "diagnosis-diagnosis-CN", "diagnosis-diagnosis-AD"]
    pair = ["sex=F", "diagnosis=CN"]
    assert analysis_name("sex", references=pair) == analysis_name("sex", references=pair[::-1])


def test_formulas_in_other_scripts_have_names_of_their_own():
    """Each is a plain file name that no other formula has."""
    names = [analysis_name(f"suvr ~ {term}") for term in ("alter_ä", "alter_ö", "年龄", "诊断", "alter_")]
    assert len(set(names)) == len(names)
    assert all(name and name.isascii() and "/" not in name for name in names)


def test_a_long_formula_has_a_name_that_a_folder_can_have():
    """Formulas that differ only at their ends have different names."""
    long = "suvr ~ " + " + ".join(f"a_rather_long_covariate_{number}" for number in range(15))
    names = [analysis_name(long), analysis_name(f"{long} + x")]
    assert len(set(names)) == 2
    assert all(len(name) == 109 for name in names)
