"""The folds of a comparison: studies of their own, with the same models and scans and other held-out people."""

from __future__ import annotations

from dualflow.config import Config, SplitConfig, checked
from dualflow.errors import ConfigError


def fold_studies(config: Config, folds: int | None) -> list[Config]:
    """One study per fold, below the folder of `config`; without folds, `config` itself with its own split.

    Args:
        config: the study.
        folds: number of folds, each of which is the test set once; None takes that of `split.folds`.

    Raises:
        ConfigError: the split names its people, or has no fixed number of folds.
    """
    count = folds or config.split.folds
    if count is None:
        return [config]
    if not isinstance(count, int):
        raise ConfigError(f"split.folds = {count}: expected a number of folds to compare over; name it with --folds")
    return [_fold_study(config, count, fold) for fold in range(count)]


def _fold_study(config: Config, count: int, fold: int) -> Config:
    values = config.split.model_dump() | {"folds": count, "fold": fold}
    split = checked(SplitConfig, values, "compare --folds")
    # The name stays, because it is that of the MLflow experiment.
    results = config.layout.fold(count, fold)
    study = config.study.model_copy(update={"results": results})
    return config.model_copy(update={"split": split, "study": study})
