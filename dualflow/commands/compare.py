"""`dualflow compare`: train all models of a configuration at one equal budget, and compare them in one table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence

import yaml

from dualflow.commands.fold_studies import fold_studies
from dualflow.commands.model_runs import TEST, picture_link, run_label, score_names
from dualflow.commands.run import run_workflow
from dualflow.commands.run_lock import run_lock
from dualflow.commands.steps import scoring_steps
from dualflow.commit import commit_text
from dualflow.config import Config, public_values
from dualflow.data.shared_scans import share_scans
from dualflow.data.tsv import table_text
from dualflow.errors import ConfigError
from dualflow.evaluation.comparison_table import Comparison, gather_comparison
from dualflow.modalities import modality
from dualflow.report.comparison_text import DIFFERENCES as SHOWN
from dualflow.report.comparison_text import comparison_parts
from dualflow.report.run_description import run_description
from dualflow.tracking.sync import sync, warn_unsent
from dualflow.tracking.tracked_run import group_run
from dualflow.training.budget import Plan, apply_plan, budgeted, make_plan

NAME, DIFFERENCES, SCORES = "comparison", "comparison_differences", "comparison_scores"
"""Names of the tables; the first also begins that of the MLflow run."""
PICTURE = "figures/comparison.png"
"""Artifact with the scores of all models."""


def compare(
    config: Config,
    *,
    seconds: float,
    names: Sequence[str] = (),
    folds: int | None = None,
    cores: str = "1",
    settings: Sequence[str] = (),
) -> int:
    """Train and score the models `names` (default: all) with the workflow; return its exit code.

    A comparison trains in studies of its own below `compare/` of the study, so that the study's models stay. With folds
    each fold is one, so that every person is tested once per seed. They share the study's simulated and preprocessed
    scans. The tables hold every model of the configuration that is trained and scored as
    planned, including models of earlier calls. They are printed, written to `metrics/comparison*.tsv` and
    `comparison.md`, and tracked in MLflow.

    Args:
        config: the study's configuration; its flows and baselines are the models.
        seconds: time of optimiser steps per model, fold and seed.
        names: models to train; by default all.
        folds: number of folds; None takes `split.folds`, and without folds the split of the study.
        cores: number of CPU cores, or `all`.
        settings: options of the command that chose the configuration, for the record.

    Raises:
        ConfigError: a name is not a model of the configuration, or the split cannot be divided into folds.
        DataError: a run of another machine may still work in this folder.
    """
    names = select_models(config, names)
    studies = fold_studies(config, folds)
    config, *studies = (_grouped(study, len(studies)) for study in (config, *studies))
    with run_lock():  # the steps of another run would slow those that are timed; each run below takes the lock again
        plan = make_plan(config, [name for name in names if name in budgeted(config)], seconds)
    print(f"{seconds:g} s of optimiser steps per model, fold and seed, {config.train.threads} thread(s):")
    for name in names:
        if name in plan.models:
            print(f"  {name:<24} {plan.models[name].steps:>6} steps of {plan.models[name].step_seconds:.3f} s")
        else:
            print(f"  {name:<24} in closed form")
    exit_code = 0
    for number, study in enumerate(studies, 1):
        if len(studies) > 1:
            print(f"\nfold {number} of {len(studies)}", flush=True)
        share_scans((studies[0] if number > 1 else config).layout, study.layout)
        planned = apply_plan(study, plan, names)
        # The comparison needs the scores alone, so conversion and report are not requested.
        code = run_workflow(planned, cores, ["--keep-going"], scoring_steps(planned, names))
        exit_code = exit_code or code
    _publish(config, studies, plan, names, settings)
    return exit_code


def select_models(config: Config, names: Sequence[str]) -> list[str]:
    """The models `names` in the configuration's order; all of them if no name is given.

    Raises:
        ConfigError: a name is not a model of the configuration.
    """
    models = [*config.flows, *config.baselines.models]
    if unknown := [name for name in names if name not in models]:
        raise ConfigError(f"no model named {', '.join(unknown)}; choose from: {', '.join(models)}")
    return [name for name in models if not names or name in names]


def _publish(
    config: Config, studies: Sequence[Config], plan: Plan, names: Sequence[str], settings: Sequence[str]
) -> None:
    """Print, track and write the tables; list the incomplete models on standard error."""
    result = gather_comparison(studies, plan)
    finished = {} if result.table.empty else dict(result.table.set_index("model")["trainings"])
    expected = {name: len(studies) * sum(model == name for model, _ in config.trainings) for name in names}
    if incomplete := [name for name in names if finished.get(name, 0) < expected[name]]:
        print(f"incomplete (a training failed or is missing): {', '.join(incomplete)}", file=sys.stderr)
    if result.table.empty:
        return
    shown = [name for name in select_models(config, []) if name in {*names, *result.table["model"]}]
    command = _command(config, plan, shown, len(studies), settings)
    parts = comparison_parts(result, config, plan, folds=len(studies), command=command)
    text = "\n\n".join(parts) + "\n"
    print(f"\n{text}")
    tables = {NAME: result.table, DIFFERENCES: result.differences, SCORES: result.scores}
    values = {name: table_text(frame) for name, frame in tables.items()}
    _track(config, studies, plan, result, values, parts)
    page = config.layout.page(NAME)
    commit_text(page, text)
    for name, content in values.items():
        commit_text(config.layout.table(name), content)
    print(f"\ntables               {', '.join(str(config.layout.table(name)) for name in values)}")
    print(f"markdown             {page}")
    _upload(config, studies)


def _command(config: Config, plan: Plan, names: Sequence[str], folds: int, settings: Sequence[str]) -> str:
    """The command of this comparison."""
    chosen = [] if len(names) == len(select_models(config, [])) else names
    over = ["--folds", str(folds)] if folds > 1 else []
    return shlex.join(["dualflow", "compare", *settings, "--seconds", f"{plan.seconds:g}", *over, *chosen])


def _grouped(config: Config, folds: int) -> Config:
    """The configuration whose trainings are nested under the run of this comparison."""
    group = f"{NAME} over {folds} folds" if folds > 1 else NAME
    return config.with_fields("tracking", group=group)


def _track(
    config: Config,
    studies: Sequence[Config],
    plan: Plan,
    result: Comparison,
    tables: Mapping[str, str],
    parts: Sequence[str],
) -> None:
    """Log the tables to the run above the trainings, whose own runs have the scores of their folds."""
    from dualflow.report.figures import model_comparison  # matplotlib takes a second to import
    from dualflow.report.style import to_page_png

    with group_run(config.tracking, config.study.name, config.layout.pending_records) as run:
        run.text(yaml.safe_dump(public_values(config), sort_keys=False), "config.yaml")
        run.text(plan.model_dump_json(indent=2), "plan.json")
        scored = result.scores[["fold", "model", "seed"]].drop_duplicates()
        run.members([run_label(studies[fold], model, seed) for fold, model, seed in scored.itertuples(index=False)])
        # Grouped by score, so that a page of charts shows the models side by side.
        scores = result.table.set_index("model").reindex(columns=list(SHOWN))
        tracked = dict[str, float]()
        for name, row in scores.iterrows():
            named = score_names({str(key): float(value) for key, value in row.dropna().items()}, config)
            tracked |= {f"{key.removeprefix(TEST)}/{name}": value for key, value in named.items()}
        run.scores(tracked, prefix="")  # those of models that the comparison no longer has are replaced too
        for name, content in tables.items():
            run.text(content, f"metrics/{name}.tsv")
        run.text("\n\n".join(parts) + "\n", f"{NAME}.md")
        figure = model_comparison(result.table, SHOWN, modality(config.study.target), result.reference)
        run.picture(to_page_png(figure), PICTURE)
        picture = picture_link(PICTURE, f"Scores of all models; blue: {result.reference}")
        run.describe(run_description([picture, *parts], f"{NAME}.md"))


def _upload(config: Config, studies: Sequence[Config]) -> None:
    """Send the records that the trainings of all folds could not deliver."""
    for study in (config, *studies):
        sync(study.tracking, study.layout.pending_records)
        warn_unsent(study.layout.pending_records)
