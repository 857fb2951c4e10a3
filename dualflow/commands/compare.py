"""`dualflow compare`: train every flow of a configuration at one equal budget, and compare them in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd

from dualflow.commands.run import run_workflow
from dualflow.commands.steps import scoring_steps
from dualflow.commit import commit_text
from dualflow.config import Config, public_values, write_resolved
from dualflow.data.tsv import table_text
from dualflow.errors import ConfigError
from dualflow.evaluation.comparison_table import comparison_table
from dualflow.report.comparison_text import comparison_markdown
from dualflow.tracking.tracked_run import tracked
from dualflow.training.budget import Plan, apply_plan, make_plan

NAME = "comparison"
"""Name of the table's files and of the MLflow run."""


def compare(config: Config, *, seconds: float, names: Sequence[str] = (), cores: str = "1") -> int:
    """Train and score the flows `names` (default: all) with the workflow; return its exit code.

    The table holds every flow of the configuration that is trained and scored as planned, including flows of earlier
    calls. It is printed, written to `metrics/comparison.tsv` and `.md`, and tracked in MLflow.

    Raises:
        ConfigError: a name is not a flow of the configuration.
    """
    names = select_flows(config, names)
    plan = make_plan(config, names, seconds)
    print(f"{seconds:g} s of optimiser steps per flow, {config.train.threads} thread(s):")
    for name in names:
        print(f"  {name:<24} {plan.flows[name].steps:>6} steps of {plan.flows[name].step_seconds:.3f} s")
    study = apply_plan(config, plan, names)
    # The comparison needs the scores alone, so conversion and report are not requested.
    exit_code = run_workflow(study, cores, ["--keep-going"], scoring_steps(study, names))
    _publish(config, plan, names)
    print(f"report and volumes   dualflow run --config {write_resolved(study)}")
    return exit_code


def select_flows(config: Config, names: Sequence[str]) -> list[str]:
    """The flows `names` in the configuration's order; all of them if no name is given.

    Raises:
        ConfigError: a name is not a flow of the configuration.
    """
    unknown = [name for name in names if name not in config.flows]
    if unknown:
        raise ConfigError(f"no flow named {', '.join(unknown)}; choose from: {', '.join(config.flows)}")
    return [name for name in config.flows if not names or name in names]


def _publish(config: Config, plan: Plan, names: Sequence[str]) -> None:
    """Print, track and write the table; list the incomplete flows on standard error."""
    frame = comparison_table(config, plan)
    complete = set() if frame.empty else set(frame.loc[frame["seeds"] == len(config.train.seeds), "model"])
    incomplete = [name for name in names if name not in complete]
    if incomplete:
        print(f"incomplete (a seed failed or is missing): {', '.join(incomplete)}", file=sys.stderr)
    if frame.empty:
        return
    text, tsv, page = comparison_markdown(frame, config, plan), config.layout.table(NAME), config.layout.page(NAME)
    print(f"\n{text}")
    values = table_text(frame)
    if not tsv.is_file() or tsv.read_text() != values:
        # Tracking precedes writing: a run killed in between is tracked twice rather than never.
        _track(config, plan, frame, text, complete=not incomplete)
    commit_text(page, text)
    commit_text(tsv, values)
    print(f"\ntable                {tsv}\nmarkdown             {page}")


def _track(config: Config, plan: Plan, frame: pd.DataFrame, text: str, *, complete: bool) -> None:
    tags = {"model": "all", "seconds": f"{plan.seconds:g}", "complete": str(complete).lower()}
    with tracked(config.tracking, config.study.name, NAME, tags, config.layout.pending_records) as run:
        run.parameters(public_values(config))
        run.parameters(plan.model_dump(), "plan")
        values = frame.set_index("model").select_dtypes("number")
        run.metrics({f"{name}/{key}": float(value) for name, row in values.iterrows() for key, value in row.items()})
        run.table(frame, f"{NAME}.json")
        run.text(text, f"{NAME}.md")
