"""Benchmarks of what dualflow does beside synthesis."""

from __future__ import annotations

from pathlib import Path

import click

from dualflow.cli.options import CONFIG, OVERRIDES
from dualflow.process import set_threads

HIDDEN = ("random", "diagnosis")
"""Ways of hiding PET in simulated studies."""


@click.group()
def bench() -> None:
    """Measure how well verdicts on new scans, statistics on imputed studies, edits and learning rates work.

    \b
    dualflow bench verdict --config my-study.yaml
                    which corruptions of held-out scans are refused
    dualflow bench imputation
                    whether intervals of group effects are right
    dualflow bench edit
                    whether edits change what the true law changes
    dualflow bench rates
                    at which learning rate each network is best
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph


@bench.command()
@CONFIG
@OVERRIDES
def verdict(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Measure which corruptions of held-out scans the verdict notices.

    \b
    dualflow bench verdict
                    the quickstart, after preprocessing
    dualflow bench verdict --config my-study.yaml
                    your own study

    The study must be preprocessed: `dualflow run -- preprocess` stops there.

    The verdict is fitted on the training scans. The first scan of each validation and test person is scored as it is
    and with each of some 40 corruptions, such as noise, wrong contrast, flips, misalignment and implanted lesions. A
    scan is refused if it does not look like a training scan, and flagged if it is refused or the lesion map has a high
    peak. The table is printed and written to RESULTS/STUDY/metrics/verdict.tsv and verdict.md.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.steps import require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    require_inputs(config, "bench verdict")
    set_threads(config.train.threads)
    from dualflow.commands.bench_verdict import bench_verdict

    bench_verdict(config)


@bench.command()
@CONFIG
@OVERRIDES
@click.option("--studies", type=click.IntRange(3), default=40, show_default=True, help="Simulated studies.")
@click.option("--people", type=click.IntRange(40), default=80, show_default=True, help="People of each study.")
@click.option("--draws", type=click.IntRange(2), default=20, show_default=True, help="Draws of each missing PET.")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("stacked_mixture",),
    show_default=True,
    metavar="NAME",
    help="Model that is trained in each study: a baseline with a spread, or a flow of the configuration. Further "
    "models are compared with the first on the same studies.",
)
@click.option(
    "--hidden",
    multiple=True,
    type=click.Choice(HIDDEN),
    default=HIDDEN,
    show_default=True,
    help="Whose PET is missing: that of half of the people, or more often of the patients and the old.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the studies.")
def imputation(
    config_path: Path,
    overrides: tuple[str, ...],
    studies: int,
    people: int,
    draws: int,
    models: tuple[str, ...],
    hidden: tuple[str, ...],
    seed: int,
) -> None:
    """Measure whether statistics on imputed studies are valid.

    \b
    dualflow bench imputation
                    40 studies of the quickstart's people, after preprocessing
    dualflow bench imputation --set cohort.law=hard --studies 100
                    the hard law, smaller Monte-Carlo errors
    dualflow bench imputation --model stacked_mixture --model dualflow --hidden random --studies 8
                    two models on the same few studies

    The study is the embedded cohort, and must be preprocessed: `dualflow run -- preprocess` stops there.

    Every study draws people with replacement and a fresh PET of each from the true law, hides some of the PET, trains
    the model on the rest, and fits `suvr ~ diagnosis + age + sex + group` to each region; the group is a coin toss. The
    table compares proper draws with complete cases, single imputation, draws of a constant spread, samples of the model
    as it is, draws with fixed parameters, and draws of the true law, which no model can surpass. It is printed and
    written to RESULTS/STUDY/metrics/imputation_MODEL.tsv and .md, that of each region to imputation_MODEL_regions.tsv;
    the estimates of every study are in folders beside them. Outcomes of several regions have rows of their own: the AD
    signature, its ratio to the frontal lobe, and an asymmetry. The differences of a further model from the first are in
    imputation_MODEL_against_FIRST.tsv and .md. An interrupted benchmark goes on with the next study.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.steps import require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    require_inputs(config, "bench imputation")
    set_threads(config.train.threads)
    from dualflow.commands.bench_imputation import bench_imputation

    bench_imputation(
        config,
        models=list(dict.fromkeys(models)),
        hidden=list(dict.fromkeys(hidden)),
        studies=studies,
        people=people,
        draws=draws,
        seed=seed,
    )


@bench.command("edit")
@CONFIG
@OVERRIDES
def bench_edits(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Measure whether `dualflow edit` changes what the true law changes.

    \b
    dualflow bench edit
                    the quickstart, after training

    The study is the embedded cohort, with a trained main flow. Every held-out person is edited from 60 to 80 years,
    from normal cognition to Alzheimer's dementia, and from female to male. The true effect is that of the same person's
    anatomy under the other value; the marginal effect also contains what the value changes through the anatomy, such as
    atrophy. The table is printed and written to RESULTS/STUDY/metrics/edit.tsv and .md.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.steps import require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    require_inputs(config, "bench edit")
    set_threads(config.train.threads)
    from dualflow.commands.bench_edit import bench_edit

    bench_edit(config)


@bench.command()
@CONFIG
@OVERRIDES
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Flow or network; default: the study's networks."
)
@click.option(
    "--rate",
    "rates",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    default=(3e-4, 1e-3, 3e-3),
    show_default=True,
    help="Peak learning rate.",
)
def rates(config_path: Path, overrides: tuple[str, ...], models: tuple[str, ...], rates: tuple[float, ...]) -> None:
    """Train models at several peak learning rates, and compare them on the validation people.

    \b
    dualflow bench rates
                    the networks of the quickstart, after preprocessing
    dualflow bench rates --config my-study.yaml --model pix2pix --model cvae --rate 1e-4 --rate 1e-3
                    two networks of your own study
    dualflow bench rates --model dualflow
                    the flow

    The study must be preprocessed: `dualflow run -- preprocess` stops there.

    Every seed of `train.seeds` counts. The score is the one that selects the weights of the model, so it compares rates
    of one model only. The table is printed and written to RESULTS/STUDY/metrics/rates.tsv and rates.md. An interrupted
    benchmark goes on with the next training. Set the best rate by `baselines.training.NAME.learning_rate`, or
    `train.learning_rate` for the flows.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.steps import require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    require_inputs(config, "bench rates")
    set_threads(config.train.threads)
    from dualflow.commands.bench_rates import bench_rates

    bench_rates(config, models, rates)


BENCH_COMMANDS = (bench,)
"""In the order of the help."""
