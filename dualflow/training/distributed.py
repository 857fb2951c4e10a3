"""The processes of one training: rank, collectives, start and shutdown.

`torchrun` starts the processes and sets their environment variables. Without it there is one process, and every
collective returns at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dualflow.errors import ConfigError
from dualflow.lifetime import PARENTS, parents_of_steps
from dualflow.process import on_sigterm, under_torchrun
from dualflow.training.device import select_device

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""Time that processes wait for each other before they fail."""
MAIN_ONLY_TIMEOUT = timedelta(days=7)
"""Time that processes wait for work that the main process does alone, such as that on the reference of verdicts."""
RESTARTS = 3
CPU = torch.device("cpu")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Backend of the collectives, by the device of the training."""


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and device of this process in the group that trains one model.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        device: where this process trains.
        patient: the same processes, with MAIN_ONLY_TIMEOUT; None in a group of one.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    patient: distributed.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and tracks."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return this process's rows of a batch.

        Raises:
            ConfigError: the processes cannot share the batch evenly.
        """
        if batch_size % self.world_size:
            raise ConfigError(
                f"train.batch_size = {batch_size} cannot be shared by {self.world_size} processes; make it a multiple"
            )
        share = batch_size // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def all_agree(self, flag: bool) -> bool:
        """Return whether `flag` is true in every process."""
        if self.world_size == 1:
            return flag
        smallest = torch.tensor(float(flag))
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
        return bool(smallest)

    def gathered(self, value: T) -> list[T]:
        """Return the value of each process, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        # The main process may still be at work that it does alone.
        distributed.all_gather_object(values, value, group=self.patient)
        return values

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return each number summed over all processes in rank order; a missing number counts as 0."""
        if self.world_size == 1:
            return dict(values)
        gathered = self.gathered(dict(values))
        names = dict.fromkeys(name for numbers in gathered for name in numbers)
        return {name: sum(numbers.get(name, 0.0) for numbers in gathered) for name in names}

    def wait(self) -> None:
        """Wait until every process has called this, for as long as the main process may work alone."""
        if self.world_size > 1:
            distributed.barrier(self.patient)


SINGLE_PROCESS = ProcessGroup()
"""A training in one process on the CPU."""


def launch(processes: int, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by torchrun, which starts `dualflow ARGUMENTS` `processes` times on this machine.

    If one of them fails, torchrun restarts all from the newest state.
    """
    os.environ[PARENTS] = parents_of_steps()  # the new processes end with this one
    os.execv(sys.executable, launch_command(processes, ["-m", "dualflow.cli", *arguments]))


def launch_command(processes: int, program: Sequence[str]) -> list[str]:
    """The command that starts a Python program (`-m MODULE ...` or `SCRIPT ...`) in processes of this machine.

    Their connections are local to the machine.
    """
    torchrun = [sys.executable, "-m", "dualflow.training.loopback_launch", "--standalone", "--local-addr=127.0.0.1"]
    return [*torchrun, f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}", *program]


@contextmanager
def process_group(device: str = "cpu") -> Iterator[ProcessGroup]:
    """Join the process group of this training, if torchrun made one, and leave it at the end.

    A group of one process trains as a larger one does, by DistributedDataParallel.

    Raises:
        ConfigError: `device` (`auto`, `cpu` or `cuda`) asks for more GPUs than there are.
    """
    selected = select_device(device)
    if selected.type == "cuda":
        torch.cuda.set_device(selected)
    if not under_torchrun():
        yield ProcessGroup(device=selected)
        return
    store, rank, world_size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # A restart reuses the store, which still holds the addresses of the dead processes.
    store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(
        BACKENDS[selected.type], store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        yield ProcessGroup(rank, world_size, selected, distributed.new_group(backend="gloo", timeout=MAIN_ONLY_TIMEOUT))
    finally:
        distributed.destroy_process_group()


class StopRequest:
    """Records SIGTERM, which schedulers send before they reclaim a machine."""

    def __init__(self) -> None:
        self.requested = False

    def listening(self) -> AbstractContextManager[None]:
        """Set `requested` on SIGTERM inside the block, instead of ending the process."""
        return on_sigterm(self._request)

    def _request(self, _number: int, _frame: object) -> None:
        self.requested = True
