"""The index of a study: usable scans, splits, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd

from dualflow.commands.imputation_terms import analysis_formula, imputation_terms, require_congenial
from dualflow.commit import commit_text
from dualflow.config import Config, ImputeConfig, public_values
from dualflow.data.fingerprint import study_fingerprint
from dualflow.data.index import build_index
from dualflow.data.study_summary import study_summary
from dualflow.errors import ConfigError
from dualflow.evaluation.downstream import require_classes, require_no_leakage
from dualflow.imputation.formula import Formula, references_of
from dualflow.manifest import write_manifest


def make_index(config: Config) -> None:
    """List the usable scans, draw the splits, and write a summary; refuse what would fail after the training."""
    layout, digest = config.layout, study_fingerprint(config)
    index = build_index(config.bids, config.study, config.split, layout.digests, layout.index_quarantine, layout.root)
    require_imputation(config, index.pairs)
    if config.evaluate.classify is not None:
        require_no_leakage(config.evaluate.classify, config.study.side, index.pairs)
        test = index.pairs[index.pairs["split"] == "test"]
        if len(test):  # without test people no model is scored
            known = test[test[config.evaluate.classify].notna()]
            require_classes(known[config.evaluate.classify].astype(str).tolist(), known["subject"].tolist())
    require_test_scans(config, index.pairs)
    index.write(layout)
    text = study_summary(index, config.study, config.split)
    commit_text(layout.study_summary, text)
    print(text)
    write_manifest(
        layout.manifest("index"),
        step="index",
        outputs={
            "pairs": layout.pairs,
            "splits": layout.splits,
            "quarantine": layout.index_quarantine,
            "study_summary": layout.study_summary,
        },
        inputs={"files": digest},
        config={name: values for name, values in public_values(config).items() if name in ("study", "split")},
        facts={"scans": len(index.pairs), "quarantined": len(index.quarantined)},
    )


def require_test_scans(config: Config, pairs: pd.DataFrame) -> None:
    """Check that the splits have test people if the configuration asks for any.

    Raises:
        ConfigError: nobody is left for it: those that are named have no usable pair, or there are too few people.
    """
    split = config.split
    wanted = split.test or split.test_subjects or split.file or split.folds
    if wanted and not (pairs["split"] == "test").any():
        named = ", ".join(split.test_subjects)
        reason = (
            f"no usable pair of {named}"
            if named
            else f"{pairs.loc[pairs['target'] != '', 'subject'].nunique()} people have a pair"
        )
        raise ConfigError(
            f"split: nobody is left to score the models on ({reason}); name or draw people with a pair, or set "
            "split.test to 0 to train only"
        )


def require_imputation(config: Config, pairs: pd.DataFrame) -> None:
    """Check that a configuration's imputation and its analyses, if it has any, can be made from the rows of the index.

    Raises:
        ConfigError: as in `require_columns` and `require_analyses`.
    """
    if config.impute is not None:
        missing = bool((pairs["target"] == "").any())
        require_columns(config.impute, config.study.side if missing else [*pairs])
        require_analyses(config.impute, config.study.side if missing else None, pairs)


def require_analyses(options: ImputeConfig, side: Sequence[str] | None, pairs: pd.DataFrame) -> None:
    """Check that the analyses of the configuration can be made from the scans of the index.

    Args:
        options: of the imputation.
        side: columns that the model takes; None if no target is missing, so that nothing is drawn.
        pairs: rows of the index.

    Raises:
        ConfigError: an analysis names no column, a column has one value or no such level, or a term is not among those
            of the imputation.
    """
    terms = None if side is None else imputation_terms(options, side, pairs)
    if terms is not None:
        with _blaming("impute.terms"):
            terms.design(terms.without_gaps(pairs))
    for name, text in options.analyses.items():
        with _blaming(f"impute.analyses.{name}"):
            formula = analysis_formula(text, references_of(text, options.references))
            design = formula.design(pairs)
            if terms is not None:
                require_congenial(formula, design, terms, pairs)


@contextmanager
def _blaming(key: str) -> Iterator[None]:
    """Begin the message of an error with the key of the configuration that causes it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def require_columns(options: ImputeConfig, columns: Sequence[str]) -> None:
    """Check that formulas and reference levels of the configuration name columns that the draws can know.

    Raises:
        ConfigError: a formula does not parse, or a formula or a reference names another column.
    """
    formulas = {f"impute.analyses.{name}": text for name, text in options.analyses.items()}
    formulas |= {"impute.terms": options.terms} if options.terms else {}
    named = {key: Formula.parse(text).variables for key, text in formulas.items()}
    for key, names in (named | {"impute.references": tuple(options.references)}).items():
        if unknown := [name for name in names if name not in columns]:
            raise ConfigError(
                f"{key} names {unknown[0]}, which is no column of study.side; add it there, or choose from: "
                f"{', '.join(columns) or 'none'}"
            )
