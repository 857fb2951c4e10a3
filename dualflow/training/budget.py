"""Equal-budget plan of a comparison: the number of optimiser steps of each flow, stored beside the results.

A wall-clock limit would depend on the load of the machine. Step times are therefore measured once, and training runs
the number of steps that fit into the budget.
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


class FlowBudget(BaseModel):
    """Planned steps of one flow.

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
    """Steps of every flow at one budget.

    Attributes:
        seconds: optimiser time per flow and seed.
        machine: description of the machine on which the step times were measured.
        flows: budget of each flow, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(gt=0)
    machine: dict[str, str]
    flows: dict[str, FlowBudget]


def make_plan(config: Config, names: Sequence[str], seconds: float, measure: Measure = step_seconds) -> Plan:
    """Plan the flows `names` at `seconds` each, and write the plan.

    Step times of an earlier plan are reused for unchanged flows, so repeating a command repeats its trainings. Only
    missing step times are measured.

    Raises:
        ConfigError: the earlier plan is unreadable, or comes from another machine and lacks a flow.
    """
    path, this_machine = config.layout.comparison_plan, machine()
    earlier = read_plan(config)
    identities = {name: step_identity(config, choice) for name, choice in config.flows.items()}
    reusable = {} if earlier is None else {n: e for n, e in earlier.flows.items() if e.identity == identities.get(n)}
    missing = [name for name in names if name not in reusable]
    if earlier is not None and reusable and earlier.machine != this_machine:
        differing = ", ".join(
            f"{key} {value}" for key, value in earlier.machine.items() if this_machine.get(key) != value
        )
        if missing:
            raise ConfigError(
                f"{path}: step times are from another machine ({differing}) and lack {', '.join(missing)}; "
                "remove the file to measure every flow on this machine"
            )
        print(f"{path}: step times are from another machine ({differing}); remove the file to measure them again")
        this_machine = earlier.machine
    times = {name: entry.step_seconds for name, entry in reusable.items()}
    times |= {
        name: measure(config, name, config.flows[name])
        for name in (track(missing, "time the steps") if missing else ())
    }
    plan = Plan(
        seconds=seconds,
        machine=this_machine,
        flows={
            name: FlowBudget(
                identity=identities[name], step_seconds=times[name], steps=steps_within(seconds, times[name])
            )
            for name in config.flows
            if name in times
        },
    )
    if plan != earlier:
        commit_json(path, plan.model_dump())
    return plan


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


def step_identity(config: Config, choice: ModelConfig) -> str:
    """Digest of everything that the step time of a flow depends on: its layers, the grid and the training options."""
    spec = preset(choice.preset, **choice.options).to_dict()
    train = config.train.model_dump(include={"batch_size", "precision", "memory", "threads", "choose_mean"})
    return digest_of([spec, config.preprocess.shape, len(config.study.side), train])[:16]


def apply_plan(config: Config, plan: Plan, names: Sequence[str]) -> Config:
    """The configuration in which the flows `names` take the plan's steps; other extra models are dropped."""
    flows = {name: config.flows[name].model_copy(update={"steps": plan.flows[name].steps}) for name in names}
    model = flows.pop(config.model.preset, config.model)
    # Early stopping is off: each flow uses its whole budget.
    train = config.train.model_copy(update={"patience": None})
    return config.model_copy(update={"model": model, "extra_models": flows, "train": train})
