"""The plan of a comparison at an equal budget: how many optimiser steps each flow is given, kept beside the results.

A budget of seconds that training itself watched would make its result depend on what else the machine does. So the
step times are measured once, the steps that fit into the budget are written down, and training is given the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dualflow.commit import commit_json, digest_of
from dualflow.config import Config, ModelConfig
from dualflow.errors import ConfigError
from dualflow.flows.presets import preset
from dualflow.progress import track
from dualflow.training.step_time import machine, step_seconds

Measure = Callable[[Config, str, ModelConfig], float]


class Entry(BaseModel):
    """One flow's share of the plan.

    Attributes:
        identity: digest of what its step time depends on.
        step_seconds: as measured.
        steps: that fit into the budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    step_seconds: float = Field(gt=0)
    steps: int = Field(ge=1)


class Plan(BaseModel):
    """Steps of each flow at one budget.

    Attributes:
        seconds: of optimiser steps that each flow is given.
        machine: where the step times were measured.
        flows: by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(gt=0)
    machine: dict[str, str]
    flows: dict[str, Entry]


def make_plan(config: Config, names: Sequence[str], seconds: float, measure: Measure = step_seconds) -> Plan:
    """Plan the flows `names` at `seconds` each, and write the plan.

    Step times of an earlier plan are taken over, of all flows that are still what they were, so that the same command
    means the same trainings; only what is missing is measured.

    Raises:
        ConfigError: the earlier plan cannot be read, or is of another machine and lacks a flow.
    """
    path, here = config.layout.bench_plan, machine()
    earlier = read_plan(config)
    wanted = {name: identity_of(config, choice) for name, choice in config.flows.items()}
    known = {} if earlier is None else {n: e for n, e in earlier.flows.items() if e.identity == wanted.get(n)}
    missing = [name for name in names if name not in known]
    if earlier is not None and known and earlier.machine != here:
        other = ", ".join(f"{key} {value}" for key, value in earlier.machine.items() if here.get(key) != value)
        if missing:
            raise ConfigError(
                f"{path}: was measured elsewhere ({other}) and lacks {', '.join(missing)}; "
                "remove it to measure every flow on this machine"
            )
        print(f"the step times in {path} are of another machine ({other}); remove it to measure again")
        here = earlier.machine
    times = {name: entry.step_seconds for name, entry in known.items()}
    times |= {
        name: measure(config, name, config.flows[name])
        for name in (track(missing, "time the steps") if missing else ())
    }
    plan = Plan(
        seconds=seconds,
        machine=here,
        flows={
            name: Entry(identity=wanted[name], step_seconds=times[name], steps=steps_within(seconds, times[name]))
            for name in config.flows
            if name in times
        },
    )
    if plan != earlier:
        commit_json(path, plan.model_dump())
    return plan


def steps_within(seconds: float, step: float) -> int:
    """Whole steps of `step` seconds that fit into a budget, at least one."""
    return max(1, int(seconds / step))


def read_plan(config: Config) -> Plan | None:
    """The study's plan, or None if there is none yet.

    Raises:
        ConfigError: the file is there and is no plan.
    """
    path = config.layout.bench_plan
    if not path.is_file():
        return None
    try:
        return Plan.model_validate_json(path.read_text())
    except ValidationError:
        raise ConfigError(f"{path}: is not a plan of steps; remove it to measure again") from None


def identity_of(config: Config, choice: ModelConfig) -> str:
    """Digest of what the time of a flow's step depends on: its pieces, the grid, and how it is trained."""
    spec = preset(choice.preset, **choice.options).to_dict()
    train = config.train.model_dump(include={"batch_size", "precision", "memory", "threads", "choose_mean"})
    return digest_of([spec, config.preprocess.shape, len(config.study.side), train])[:16]


def budgeted(config: Config, plan: Plan, names: Sequence[str]) -> Config:
    """The configuration in which the flows `names` have the plan's steps; other extra flows are left out of it."""
    flows = {name: config.flows[name].model_copy(update={"steps": plan.flows[name].steps}) for name in names}
    model = flows.pop(config.model.preset, config.model)
    # Each flow takes its whole budget.
    train = config.train.model_copy(update={"patience": None})
    return config.model_copy(update={"model": model, "extra_models": flows, "train": train})
