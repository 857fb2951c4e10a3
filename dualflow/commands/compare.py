"""`dualflow bench presets`: every flow of a configuration at one equal budget of training, in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd

from dualflow.commands.run import run_workflow
from dualflow.commit import commit_text
from dualflow.config import Config, public_values, write_resolved
from dualflow.data.tsv import table_text
from dualflow.errors import ConfigError
from dualflow.evaluation.comparison_table import collect
from dualflow.report.comparison_text import markdown
from dualflow.tracking.tracked_run import tracked
from dualflow.training.budget import Plan, budgeted, make_plan

RUN_NAME = "preset comparison"


def bench_presets(config: Config, *, seconds: float, names: Sequence[str] = (), cores: str = "1") -> int:
    """Train and score the flows `names` (all, if none is named) with the workflow; return its exit code.

    The table holds every flow of the configuration that is trained and scored as planned, also where others failed or
    were not asked for this time. It goes to the screen, to `metrics/presets.tsv` and `.md`, and to MLflow.

    Raises:
        ConfigError: a name is no flow of the configuration.
    """
    names = chosen(config, names)
    plan = make_plan(config, names, seconds)
    print(f"{seconds:g} s of optimiser steps each, {config.train.threads} thread(s):")
    for name in names:
        print(f"  {name:<24} {plan.flows[name].steps:>6} steps of {plan.flows[name].step_seconds:.3f} s")
    study = budgeted(config, plan, names)
    # Conversion and report are left out: the comparison needs the scores alone.
    targets = [
        str(study.layout.manifest(f"evaluate/{name}_seed-{seed}")) for name in names for seed in study.train.seeds
    ]
    code = run_workflow(study, cores, ["--keep-going", *targets])
    _publish(config, plan, names)
    print(f"report and volumes   dualflow run --config {write_resolved(study)}")
    return code


def chosen(config: Config, names: Sequence[str]) -> list[str]:
    """The flows `names` in the configuration's order; all of them if none is named.

    Raises:
        ConfigError: a name is no flow of the configuration.
    """
    unknown = [name for name in names if name not in config.flows]
    if unknown:
        raise ConfigError(f"no flow named {', '.join(unknown)}; choose from: {', '.join(config.flows)}")
    return [name for name in config.flows if not names or name in names]


def _publish(config: Config, plan: Plan, names: Sequence[str]) -> None:
    """Print, track and write the table of what is done; say what is not."""
    frame = collect(config, plan)
    done = set() if frame.empty else set(frame.loc[frame["seeds"] == len(config.train.seeds), "model"])
    undone = [name for name in names if name not in done]
    if undone:
        print(f"not, or not with every seed, done: {', '.join(undone)}", file=sys.stderr)
    if frame.empty:
        return
    text, table, page = markdown(frame, config, plan), config.layout.table("presets"), config.layout.page("presets")
    print(f"\n{text}")
    values = table_text(frame)
    if not table.is_file() or table.read_text() != values:
        # Tracked before it is written: killed in between, it is tracked again, not lost.
        _track(config, plan, frame, text, complete=not undone)
    commit_text(page, text)
    commit_text(table, values)
    print(f"\ntable                {table}\nfor a page           {page}")


def _track(config: Config, plan: Plan, frame: pd.DataFrame, text: str, *, complete: bool) -> None:
    tags = {"model": "all", "seconds": f"{plan.seconds:g}", "complete": str(complete).lower()}
    with tracked(config.tracking, config.study.name, RUN_NAME, tags, config.layout.outbox) as run:
        run.parameters(public_values(config))
        run.parameters(plan.model_dump(), "plan")
        values = frame.set_index("model").select_dtypes("number")
        run.metrics({f"{name}/{key}": float(value) for name, row in values.iterrows() for key, value in row.items()})
        run.table(frame, "presets.json")
        run.text(text, "presets.md")
