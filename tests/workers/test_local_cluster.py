"""Number of worker processes of this machine, and the GPU of each."""

import os

import pytest
from sockets import listening_addresses

from dualflow.workers import local_cluster


@pytest.mark.parametrize(("cores", "gib", "workers"), [(8, 64, 8), (8, 15, 3), (2, 3, 1), (1, 64, 1)])
def test_workers_fit_cores_and_memory(monkeypatch, cores, gib, workers):
    """Each worker has a core and its memory; there is at least one."""
    monkeypatch.setattr(local_cluster, "CPU_COUNT", cores)
    monkeypatch.setattr(local_cluster, "MEMORY_LIMIT", gib << 30)
    assert local_cluster.default_workers() == workers


def test_workers_take_gpus_in_turn(monkeypatch, tmp_path):
    """Two GPUs are shared by three workers; the user's choice of GPUs is kept; without a GPU nothing is set."""
    monkeypatch.setattr(local_cluster, "_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local_cluster.gpu_of(0) == {}
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert [local_cluster.gpu_of(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [local_cluster.gpu_of(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(3)] == ["5", "7", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_cluster.gpu_of(0) == {}


@pytest.mark.slow
def test_a_local_cluster_listens_on_loopback_only():
    """Neither the scheduler, in this process, nor a nanny or a worker listens on the network."""
    before = listening_addresses(os.getpid())
    with local_cluster.local_pool(1):
        addresses = listening_addresses(os.getpid())
    # The process may listen already: torch keeps the socket of the first group that DistributedDataParallel used.
    assert "127.0.0.1" in addresses
    assert addresses - before <= {"127.0.0.1"}
