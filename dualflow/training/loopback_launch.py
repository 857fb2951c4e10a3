"""torchrun for the processes of one machine: `python -m dualflow.training.loopback_launch TORCHRUN_ARGUMENTS`.

The store by which torch's processes meet has no password and listens on every network interface. Here it listens on
127.0.0.1.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import torch.distributed
from torch._C._distributed_c10d import TCPStore

HOST = "127.0.0.1"
_INTERFACES = {"lo", "lo0"}
"""Names of the loopback interface on Linux and macOS."""
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class LoopbackStore(TCPStore):
    """A TCPStore whose server listens on 127.0.0.1 only."""

    def __init__(self, host_name: str, port: int, *arguments: Any, **options: Any) -> None:
        """Create the store; the option `is_master` starts its server."""
        if options.get("is_master"):
            listener = socket.create_server((HOST, port))
            port = listener.getsockname()[1]
            options["master_listen_fd"] = listener.detach()
        super().__init__(host_name, port, *arguments, **options)


def main() -> None:
    """Run torchrun with the arguments of the command line."""
    vars(torch.distributed)["TCPStore"] = LoopbackStore
    for _, interface in socket.if_nameindex():
        if interface in _INTERFACES:
            os.environ.update({name: interface for name in _VARIABLES if name not in os.environ})
    from torch.distributed.run import main as torchrun

    torchrun()


if __name__ == "__main__":
    main()
