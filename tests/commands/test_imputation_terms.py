"""Terms of an analysis are those that the imputation knows."""

import numpy as np
import pandas as pd
import pytest

from dualflow.commands.imputation_terms import analysis_formula, require_congenial
from dualflow.errors import ConfigError
from dualflow.imputation.formula import Formula

PEOPLE = pd.DataFrame(
    {
        "age": [60.0, 70, 80, 65, 72, 77, 81, 66],
        "diagnosis": ["CN", "CN", "AD", "AD", "AD", "CN", "AD", "AD"],
        "mmse": [np.nan, np.nan, 20, 22, 25, np.nan, 18, 21],
        "apoe4": [0, 1, 2, 0, 1, 2, 0, 1],
    }
)


def with_design(formula: Formula) -> tuple[Formula, pd.DataFrame]:
    """A formula with its design matrix of PEOPLE."""
    return formula, formula.design(PEOPLE)


def test_a_term_that_is_constant_where_another_is_known_does_no_harm() -> None:
    """MMSE is known in patients only, where the imputation's diagnosis does not vary."""
    terms = Formula("age + diagnosis + mmse", {"diagnosis": "CN"})
    require_congenial(*with_design(analysis_formula("suvr ~ mmse + age", {})), terms, PEOPLE)
    with pytest.raises(ConfigError, match="mmse:age is not among the terms"):
        require_congenial(*with_design(analysis_formula("suvr ~ mmse * age", {})), terms, PEOPLE)


def test_levels_of_a_number_ask_for_a_reference_level() -> None:
    """Its linear term does not know the levels."""
    terms = Formula("age + apoe4")
    with pytest.raises(
        ConfigError, match=r"set impute\.terms to include apoe4 \+ age and impute\.references \{'apoe4': '0'\}"
    ):
        require_congenial(*with_design(analysis_formula("suvr ~ apoe4 + age", {"apoe4": "0"})), terms, PEOPLE)
    require_congenial(*with_design(analysis_formula("suvr ~ apoe4 + age", {})), terms, PEOPLE)
