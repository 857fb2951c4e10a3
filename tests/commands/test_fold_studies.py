"""The studies of a comparison are those of its table alone."""

import pytest

from dualflow.commands.fold_studies import fold_studies
from dualflow.config import parse_config
from dualflow.training.budget import apply_plan, make_plan


@pytest.mark.parametrize("folds", [None, 5])
def test_nothing_is_classified_in_a_comparison(folds):
    """Its table has no classification, and a fold has too few people of a class: the comparison failed."""
    study = {"name": "x", "labels": ["diagnosis"]}
    config = parse_config({"study": study, "evaluate": {"classify": "diagnosis", "samples": 8}})
    studies = fold_studies(config, folds)
    assert len(studies) == (folds or 1)
    assert {(one.evaluate.classify, one.evaluate.samples) for one in studies} == {(None, 8)}


@pytest.mark.parametrize("folds", [None, 5])
def test_nothing_is_imputed_in_a_comparison(folds):
    """Its studies have the compared models alone, of which the imputing model need not be one."""
    models = {"baselines": {"models": ["stacked_mixture", "unet"]}, "impute": {"model": "stacked_mixture"}}
    config = parse_config({"study": {"name": "x"}, **models})
    plan = make_plan(config, ["dualflow", "unet"], 1, lambda *_: 0.1)
    for study in fold_studies(config, folds):
        compared = apply_plan(study, plan, ["dualflow", "unet"])
        assert parse_config(compared.model_dump()).baselines.models == ("unet",)
