"""The choice of a cluster: this machine, a running Dask scheduler, or jobs of a batch system."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from distributed import Client

from dualflow import __version__
from dualflow.digests import digest_of
from dualflow.errors import ClusterError, ConfigError
from dualflow.revisions import REVISIONS
from dualflow.workers.local_cluster import local_pool
from dualflow.workers.slurm_cluster import SLURM, read_profile, require_jobqueue, slurm_pool
from dualflow.workers.worker_pool import WorkerPool

LOCAL = "local"
_ADDRESS = re.compile(r"(tcp|tls)://\S+:\d+")
_CONNECT_TIMEOUT_S, _JOIN_TIMEOUT_S = 20, 60


def check_cluster(cluster: str, workers: int | None = None) -> None:
    """Check a choice of cluster before the work starts.

    Args:
        cluster: `local`; the address of a running scheduler, such as `tcp://node1:8786`; or `slurm:PROFILE` with the
            path of a profile (`SlurmProfile`).
        workers: number of worker processes, which only a local cluster takes.

    Raises:
        ConfigError: the choice is none of these, its profile is invalid, or it does not go with `workers`.
    """
    if cluster == LOCAL:
        return
    if workers is not None:
        raise ConfigError(
            f"--workers {workers} counts processes of this machine, expected none with --cluster {cluster}; leave it "
            "out: the scheduler's workers, or the profile's jobs and cores, decide"
        )
    if cluster.startswith(SLURM):
        require_jobqueue()
        read_profile(Path(cluster.removeprefix(SLURM)))
    elif not _ADDRESS.fullmatch(cluster):
        raise ConfigError(
            f"--cluster {cluster} is not a cluster; choose from: local, the address of a Dask scheduler such as "
            "tcp://node1:8786, slurm:PROFILE.yaml"
        )


def open_pool(cluster: str, workers: int) -> AbstractContextManager[WorkerPool]:
    """The workers of a cluster, in a block; `workers` is their number on this machine.

    Raises:
        ClusterError: the cluster cannot be joined.
        ConfigError: as `check_cluster`.
    """
    check_cluster(cluster)
    if cluster == LOCAL:
        return local_pool(workers)
    return slurm_pool(Path(cluster.removeprefix(SLURM))) if cluster.startswith(SLURM) else _joined_pool(cluster)


@contextmanager
def _joined_pool(address: str) -> Iterator[WorkerPool]:
    """The workers of a running scheduler, which outlive the block."""
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
    except TypeError as error:  # Dask's way to say that no certificates are configured
        raise ClusterError(
            f"{address}: encrypted, and no certificates are configured here ({error}); set distributed.comm.tls in "
            "Dask's configuration, as for the scheduler"
        ) from None
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"{address}: no scheduler answers ({error}); start one with `dask scheduler`, or correct --cluster"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_JOIN_TIMEOUT_S)
        except TimeoutError:
            raise ClusterError(
                f"{address}: the scheduler has no workers, expected at least one; start them with "
                f"`dask worker {address} --nthreads 1 --nworkers N`"
            ) from None
        _check_workers(client, address)
        yield WorkerPool(client)


def _check_workers(client: Client, address: str) -> None:
    threads = max(client.nthreads().values(), default=1)
    if threads > 1:
        raise ClusterError(
            f"{address}: a worker has {threads} threads, expected one because a scan takes one process; start the "
            f"workers with `dask worker {address} --nthreads 1 --nworkers {threads}`"
        )
    versions, here = client.run(_version, on_error="return"), _version()
    for worker, version in versions.items():
        if version != here:
            raise ClusterError(
                f"{address}: the worker {worker} has dualflow {version}, expected {here} as here; install the "
                "same version for all workers"
            )


def _version() -> str:
    """The version, and the revisions of the steps, which tell checkouts of one version apart."""
    return f"{__version__} with steps {digest_of(REVISIONS)[:8]}"
