"""The studies of a comparison, one per fold: their own trainings, with the same models and scans."""

from __future__ import annotations

from pathlib import Path

from dualflow.config import Config, SplitConfig, checked
from dualflow.errors import ConfigError


def fold_studies(config: Config, folds: int | None) -> list[Config]:
    """One study per fold, below the folder of `config`; without folds, one study with the split of `config`.

    The models that the study itself has trained stay as they are: those of a comparison have another budget.

    Args:
        config: the study.
        folds: number of folds, each of which is the test set once; None takes that of `split.folds`.

    Raises:
        ConfigError: the split names its people, or has no fixed number of folds.
    """
    count = folds or config.split.folds
    if count is None:
        return [_within(config, config.layout.compared_split)]
    if not isinstance(count, int):
        raise ConfigError(f"split.folds = {count}: expected a number of folds to compare over; name it with --folds")
    return [_fold_study(config, count, fold) for fold in range(count)]


def _fold_study(config: Config, count: int, fold: int) -> Config:
    values = config.split.model_dump() | {"folds": count, "fold": fold}
    split = checked(SplitConfig, values, "compare --folds")
    return _within(config.model_copy(update={"split": split}), config.layout.fold(count, fold))


def _within(config: Config, results: Path) -> Config:
    """The study with its results in another folder; the name stays, because it is that of the MLflow experiment.

    No label is classified: a comparison does not show it, and a fold may have too few people of a class. Nothing is
    imputed either, perhaps by a model that is not compared.
    """
    study = config.model_copy(update={"impute": None})
    return study.with_fields("study", results=results).with_fields("evaluate", classify=None)
