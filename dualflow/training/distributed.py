"""Several processes that train one model: who each is, what is said to all, and how they end together.

`torchrun` starts the processes and says by environment variables who is who; without it there is one process, and
everything here costs nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dualflow.errors import ConfigError
from dualflow.process import on_sigterm
from dualflow.training.device import chosen_device

PATIENCE = timedelta(minutes=10)
"""How long processes wait for each other before they end with an error."""
RESTARTS = 3


CPU = torch.device("cpu")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""How processes talk to each other, by the device they train on."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that train one model.

    Attributes:
        rank: its number, from 0; the first one writes and tracks.
        count: how many there are.
        device: where this process trains.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that are this process's.

        Raises:
            ConfigError: the batch cannot be shared evenly.
        """
        if batch_size % self.count:
            raise ConfigError(
                f"train.batch_size = {batch_size} cannot be shared by {self.count} processes; make it a multiple"
            )
        part = batch_size // self.count
        return slice(self.rank * part, (self.rank + 1) * part)

    def all_agree(self, flag: bool) -> bool:
        """Whether `flag` is true in every process."""
        if self.count == 1:
            return flag
        told = torch.tensor(float(flag))
        distributed.all_reduce(told, distributed.ReduceOp.MIN)
        return bool(told)

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each number summed over all processes, in their order, so that all get the same; a missing one is 0."""
        if self.count == 1:
            return dict(values)
        told: list[Any] = [None] * self.count
        distributed.all_gather_object(told, dict(values))
        names = dict.fromkeys(name for one in told for name in one)
        return {name: sum(one.get(name, 0.0) for one in told) for name in names}

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Ranks()
"""A process that shares its training with nobody."""


def launched() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def launch(processes: int, arguments: Sequence[str]) -> NoReturn:
    """Become torchrun, which starts `dualflow ARGUMENTS` `processes` times on this machine.

    Where one of them dies, all are started again and go on from the newest state.
    """
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    os.execv(sys.executable, [*run, f"--max-restarts={RESTARTS}", "-m", "dualflow.cli", *arguments])


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Join the other processes of this training, where there are any, and leave them at the end.

    Raises:
        ConfigError: `device` (`auto`, `cpu` or `cuda`) asks for more GPUs than there are.
    """
    count, own = int(os.environ["WORLD_SIZE"]) if launched() else 1, chosen_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if count == 1:
        yield Ranks(device=own)
        return
    store, rank, count = next(iter(rendezvous("env://", timeout=PATIENCE)))
    # After a restart the store is the same, and in it are the addresses of the processes that have gone.
    fresh = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(BACKENDS[own.type], store=fresh, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks(rank, count, own)
    finally:
        distributed.destroy_process_group()


class Stop:
    """Whether SIGTERM has asked this process to end, as a scheduler does before it takes a machine away."""

    def __init__(self) -> None:
        self.asked = False

    def listening(self) -> AbstractContextManager[None]:
        """Within, SIGTERM sets `asked` and does nothing else."""
        return on_sigterm(self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True
