"""A Dask scheduler in a process of its own, and worker processes that join it."""

import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def running(*arguments):
    """A command of Dask that ends with the block."""
    command = [sys.executable, "-m", *map(str, arguments)]
    # Workers import the functions of a test by the name of its module, such as tests.workers.test_cluster_choice.
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def scheduler():
    """Address of a scheduler without workers, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", port, "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    with running("distributed.cli.dask_scheduler", *options) as process:
        yield f"tcp://127.0.0.1:{port}", process


@pytest.fixture
def join():
    """Start worker processes at an address, in a block."""

    def start(address, *options):
        return running("distributed.cli.dask_worker", address, "--no-dashboard", *options)

    return start
