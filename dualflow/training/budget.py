"""Equal-budget plan of a comparison: the optimiser steps of each trained model, stored beside the results.

A wall-clock limit would depend on the load of the machine. Step times are therefore measured once, and training runs
the number of steps that fit into the budget. Baselines in closed form take no steps and have no part in the plan.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dualflow.commit import commit_json
from dualflow.config import Config
from dualflow.config.learning import SEEDED
from dualflow.digests import digest_of
from dualflow.errors import ConfigError
from dualflow.progress import track
from dualflow.training.device import select_device
from dualflow.training.flow_spec import flow_spec
from dualflow.training.step_time import machine, step_seconds

Measure = Callable[[Config, str], float]
BUSY_PERCENT = 10.0
"""Use of the processor by other work above which step times are doubtful."""


class ModelBudget(BaseModel):
    """Planned steps of one model.

    Attributes:
        identity: digest of everything that its step time depends on.
        step_seconds: measured time of one optimiser step.
        steps: optimiser steps that fit into the budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    step_seconds: float = Field(gt=0)
    steps: int = Field(ge=1)


class Plan(BaseModel):
    """Steps of every flow and every baseline with gradient steps, at one budget.

    Attributes:
        seconds: optimiser time per model and seed.
        machine: description of the machine on which the step times were measured.
        models: budget of each model, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(gt=0)
    machine: dict[str, str]
    models: dict[str, ModelBudget]


def budgeted(config: Config) -> list[str]:
    """The models of a configuration that take optimiser steps: all flows, and the baselines with gradient steps."""
    return [*config.flows, *(name for name in config.baselines.models if name in SEEDED)]


def make_plan(config: Config, names: Sequence[str], seconds: float, measure: Measure = step_seconds) -> Plan:
    """Plan the models `names` at `seconds` each, and write the plan.

    Step times of an earlier plan are reused for unchanged models, so repeating a command repeats its trainings. Only
    missing step times are measured.

    Raises:
        ConfigError: the earlier plan is unreadable, or comes from another machine and lacks a model.
    """
    path, this_machine = config.layout.comparison_plan, machine()
    earlier = read_plan(config)
    identities = {name: step_identity(config, name) for name in budgeted(config)}
    reusable = {} if earlier is None else {n: e for n, e in earlier.models.items() if e.identity == identities.get(n)}
    missing = [name for name in names if name not in reusable]
    if earlier is not None and reusable and earlier.machine != this_machine:
        differing = ", ".join(
            f"{key} {value}" for key, value in earlier.machine.items() if this_machine.get(key) != value
        )
        if missing:
            raise ConfigError(
                f"{path}: step times are from another machine ({differing}) and lack {', '.join(missing)}; "
                "remove the file to measure every model on this machine"
            )
        print(f"{path}: step times are from another machine ({differing}); remove the file to measure them again")
        this_machine = earlier.machine
    times = {name: entry.step_seconds for name, entry in reusable.items()}
    if missing:
        _warn_if_busy(f"remove {path} and run again on an idle machine")
        times |= {name: measure(config, name) for name in track(missing, "time the steps")}
    plan = Plan(
        seconds=seconds,
        machine=this_machine,
        models={
            name: ModelBudget(
                identity=identities[name], step_seconds=times[name], steps=steps_within(seconds, times[name])
            )
            for name in identities
            if name in times
        },
    )
    if plan != earlier:
        commit_json(path, plan.model_dump())
    return plan


def _warn_if_busy(remedy: str) -> None:
    percent = psutil.cpu_percent(interval=1.0)
    if percent > BUSY_PERCENT:
        print(
            f"warning: other work takes {percent:.0f} % of the processor, so step times are too long, each by another "
            f"factor; {remedy}",
            file=sys.stderr,
        )


def steps_within(seconds: float, step_time: float) -> int:
    """Number of whole steps of `step_time` seconds that fit into a budget, at least one."""
    return max(1, int(seconds / step_time))


def read_plan(config: Config) -> Plan | None:
    """The study's plan, or None if there is none yet.

    Raises:
        ConfigError: the file exists but is not a valid plan.
    """
    path = config.layout.comparison_plan
    if not path.is_file():
        return None
    try:
        return Plan.model_validate_json(path.read_text())
    except ValidationError:
        raise ConfigError(f"{path}: is not a valid plan; remove it to measure the step times again") from None


def step_identity(config: Config, name: str) -> str:
    """Digest of all that the step time of a model depends on: layers, sources, grid, training options and device."""
    choice = config.flows.get(name, config.model)  # the size of a U-Net follows that of the main flow
    spec = flow_spec(choice).to_dict()
    train = config.train.model_dump(include={"batch_size", "precision", "memory", "threads"})
    baseline = [] if name in config.flows else [name, config.baselines.of(name).width]
    sizes = config.preprocess.shape, len(config.study.side)
    devices = [str(select_device(config.train.device)), config.train.processes]
    return digest_of([*baseline, spec, *sizes, train, *devices, *config.study.extra_sources])[:16]


def apply_plan(config: Config, plan: Plan, names: Sequence[str]) -> Config:
    """The configuration with the models `names` alone, with the plan's steps; the main flow remains in any case."""
    flows = {
        name: choice.model_copy(update={"steps": plan.models[name].steps} if name in plan.models else {})
        for name, choice in config.flows.items()
        if name in names
    }
    config = config.with_fields(
        "baselines",
        models=tuple(name for name in config.baselines.models if name in names),
        training={
            name: config.baselines.of(name).model_copy(update={"steps": plan.models[name].steps})
            for name in names
            if name not in flows and name in plan.models
        },
    )
    config = config.with_fields("train", patience=None)  # each model uses its whole budget
    return config.model_copy(update={"model": flows.pop(config.model.preset, config.model), "extra_models": flows})
