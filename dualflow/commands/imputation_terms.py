"""The terms of an imputation, and whether an analysis keeps to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from dualflow.config import ImputeConfig
from dualflow.errors import ConfigError
from dualflow.imputation.formula import Formula, lies_in, quoted, references_of


def imputation_terms(options: ImputeConfig, side: Sequence[str], people: pd.DataFrame) -> Formula:
    """The terms of the imputation: those of the configuration, or all side columns of the model that vary.

    Raises:
        ConfigError: a term is no side column of the model, which then could not keep its effect on other regions.
    """
    varying = [name for name in side if people[name].nunique() > 1]
    text = options.terms or " + ".join(map(quoted, varying)) or "1"
    formula = Formula.parse(text, references_of(text, options.references))
    if unknown := [name for name in formula.variables if name not in side]:
        raise ConfigError(
            f"impute.terms names {unknown[0]}, which is no side information of the model; add it to study.side and "
            f"train again, or choose from: {', '.join(side) or 'none'}"
        )
    return formula


def analysis_formula(text: str, references: Mapping[str, str]) -> Formula:
    """Read the formula of an analysis, which names a column at least.

    Raises:
        ConfigError: it does not parse, or names none.
    """
    formula = Formula.parse(text, references)
    if not formula.variables:
        raise ConfigError(f"formula '{text}' names no column; write it as 'suvr ~ diagnosis + age'")
    return formula


def require_congenial(formula: Formula, design: pd.DataFrame, terms: Formula, people: pd.DataFrame) -> None:
    """Check that the imputation knows every term of an analysis of these people.

    Draws that do not depend on a term have no effect of it, and dilute the effect in the completed tables
    (Meng 1994, Multiple-imputation inferences with uncongenial sources of input).

    Args:
        formula: of the analysis.
        design: its design matrix of these people; rows with unknown values are NaN.
        terms: of the imputation.
        people: side information, one row per scan.

    Raises:
        ConfigError: a term is no combination of those of the imputation.
    """
    space = terms.design(terms.without_gaps(people))
    known = design.notna().all(axis=1).to_numpy()
    inside = lies_in(design[known].to_numpy(), space[known].to_numpy())
    if foreign := [str(name) for name, is_in in zip(design, inside, strict=True) if not is_in]:
        references = {name: level for name, level in formula.references.items() if terms.references.get(name) != level}
        levels = f" and impute.references {references}" if references else ""
        raise ConfigError(
            f"{foreign[0]} is not among the terms of the imputation ({terms.text}), so the drawn values "
            f"know nothing of it and would dilute its effect; set impute.terms to include {formula.text}{levels} "
            "(columns that are not in study.side need a new training), and run `dualflow impute` again"
        )
