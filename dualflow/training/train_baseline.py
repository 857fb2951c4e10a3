"""Training of a baseline: its closed-form parts, and the stages of its network."""

from __future__ import annotations

from time import perf_counter

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.correction import Correction
from dualflow.config.learning import BaselineTraining
from dualflow.data.dataset import PairDataset
from dualflow.models.card import TrainingRecord
from dualflow.training.closed_form import subject_folds
from dualflow.training.context import TrainingContext
from dualflow.training.device import chosen_precision
from dualflow.training.history import History, TrainingResult
from dualflow.training.trainer import Trainer

FIRST_STAGE = 0.4
"""Share of the steps of a first stage of training."""


def train_baseline(
    model: Baseline,
    train: PairDataset,
    validation: PairDataset,
    context: TrainingContext,
    settings: BaselineTraining,
) -> TrainingResult[Baseline]:
    """Fit a baseline's closed-form parts in place, then train its network if it has one.

    The network sees cross-fitted predictions of the closed form. The steps of `settings` are those of all stages.

    Args:
        model: untrained.
        train: pairs to learn from.
        validation: pairs to select the weights on.
        context: settings of the training.
        settings: steps and learning rate; without a rate the model's default one.

    Raises:
        DataError: there are no training pairs.
        DualflowError: the training diverged.
    """
    begin = perf_counter()
    images = model.fit(train, subject_folds(train), context.closed_form)
    # A fit from the cache counts as if it had been computed.
    seconds = perf_counter() - begin - context.closed_form.elapsed + context.closed_form.seconds
    if not isinstance(model, Correction):
        return TrainingResult(model.eval(), History(), TrainingRecord(mean_seconds=seconds))
    assert images is not None
    pairs, unit = train.with_means(images), model.unit()
    pairs = pairs if unit is None else pairs.with_spread(unit)
    assert settings.steps is not None
    steps, rate = settings.steps, settings.learning_rate or model.learning_rate
    first, first_steps, earlier = model.first_stage(), 0, History()
    if first is not None:
        first_steps = min(round(FIRST_STAGE * steps), steps - 1)
        if first_steps:
            part = context.part("first-stage")
            earlier = Trainer(first, pairs, validation, part, steps=first_steps, learning_rate=rate).fit()
        model.finish_first_stage(train, images)
    history = Trainer(
        model.objective(),
        pairs,
        validation,
        context,
        steps=steps - first_steps,
        learning_rate=rate,
        keep_start=True,
    ).fit()
    record = TrainingRecord(
        precision=chosen_precision(context.config.precision, context.group.device),
        seconds=history.seconds,
        best_step=history.best_step,
        skipped_steps=earlier.skipped + history.skipped,
        mean_seconds=seconds,
        pretrain_steps=earlier.steps,
        pretrain_seconds=earlier.seconds,
    )
    return TrainingResult(model.eval(), history, record)
