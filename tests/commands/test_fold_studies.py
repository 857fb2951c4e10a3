"""The studies of a comparison are those of its table alone."""

import pytest

from dualflow.commands.fold_studies import fold_studies
from dualflow.config import parse_config


@pytest.mark.parametrize("folds", [None, 5])
def test_nothing_is_classified_in_a_comparison(folds):
    """Its table has no classification, and a fold has too few people of a class: the comparison failed."""
    study = {"name": "x", "labels": ["diagnosis"]}
    config = parse_config({"study": study, "evaluate": {"classify": "diagnosis", "samples": 8}})
    studies = fold_studies(config, folds)
    assert len(studies) == (folds or 1)
    assert {(one.evaluate.classify, one.evaluate.samples) for one in studies} == {(None, 8)}
