"""Worker processes in SLURM jobs, which dask-jobqueue starts from a profile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from threading import Event, Thread
from typing import Annotated, Any

import dask
import yaml
from distributed import Client
from pydantic import Field

from dualflow.config.load import checked
from dualflow.config.section import Section, expected
from dualflow.errors import ClusterError, ConfigError
from dualflow.workers.local_cluster import MEMORY_GIB, SETTINGS
from dualflow.workers.worker_pool import WorkerPool

SLURM = "slurm:"
"""Prefix of the choice of SLURM; the path of a profile follows."""
_RESUBMIT_S = 30
_CERTIFICATES = ("_job_ca_file", "_job_cert", "_job_key")


class SlurmProfile(Section):
    """Size and number of the jobs, from a YAML file such as configs/profiles/convert-slurm.yaml."""

    queue: str | None = None
    """Partition; None takes the site's default."""
    account: str | None = None
    """Account that is charged; None takes the user's default."""
    jobs: int = Field(default=4, ge=1)
    """Number of jobs in the queue or running."""
    cores: int = Field(default=4, ge=1)
    """Cores of a job; each is one worker process."""
    memory: Annotated[str, Field(pattern=r"^\d+ ?[GM]i?B$"), expected("a size such as 16 GiB or 900 MB")] = (
        f"{4 * MEMORY_GIB} GiB"
    )
    """Memory of a job, which its workers share equally."""
    walltime: Annotated[
        str, Field(pattern=r"^(\d+-)?\d+:\d\d:\d\d$"), expected("a time in quotes, such as '04:00:00' or '1-12:00:00'")
    ] = "04:00:00"
    """Time limit of a job. A job that ends is replaced, and the scan that it was at is repeated."""
    directives: tuple[str, ...] = ()
    """Further options of sbatch, such as `--gres=gpu:1`."""
    prologue: tuple[str, ...] = ()
    """Shell commands of a job before its workers start, such as `module load cuda`."""
    interface: str | None = None
    """Network interface that login and compute nodes share, such as `ib0`; None takes the default route's."""
    shared_folder: Path = Path()
    """Folder that all nodes see, for the TLS certificates of this run."""
    logs: Path = Path("logs/slurm")
    """Folder of the jobs' logs."""


def require_jobqueue() -> None:
    """Check that dask-jobqueue is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("dask_jobqueue") is None:
        raise ConfigError(
            "--cluster slurm:PROFILE needs dask-jobqueue, which is not installed; pip install 'dualflow[slurm]'"
        )


def read_profile(path: Path) -> SlurmProfile:
    """Read a profile.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not accepted.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read ({reason}); name a profile such as convert-slurm.yaml") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {type(raw).__name__}, expected keys such as 'queue:'; see convert-slurm.yaml")
    return checked(SlurmProfile, raw, str(path))


@contextmanager
def slurm_pool(path: Path) -> Iterator[WorkerPool]:
    """Workers in jobs that end with the block; their scheduler runs in this process, and connections are encrypted.

    Args:
        path: a profile.

    Raises:
        ClusterError: no job can be submitted from this machine, or SLURM refuses it.
    """
    require_jobqueue()
    profile = read_profile(path)
    if which("sbatch") is None:
        raise ClusterError("sbatch is not on the PATH, expected SLURM's command; run on a login node of the cluster")
    with (
        dask.config.set(SETTINGS),
        slurm_cluster(profile) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        _test_job(cluster, path)
        with _submitted(cluster, profile.jobs):
            print(f"{profile.jobs} jobs are in the queue of SLURM; their logs are in {profile.logs}", file=sys.stderr)
            yield WorkerPool(client)


@contextmanager
def slurm_cluster(profile: SlurmProfile) -> Iterator[Any]:
    """The cluster of a profile, without jobs; its `job_script()` shows what a job runs."""
    from dask_jobqueue import SLURMCluster

    # The workers' nodes do not know this process's settings.
    settings = f"export DASK_INTERNAL_INHERIT_CONFIG={dask.config.serialize(SETTINGS)}"
    cluster = SLURMCluster(
        queue=profile.queue,
        account=profile.account,
        cores=profile.cores,
        processes=profile.cores,
        memory=profile.memory,
        walltime=profile.walltime,
        job_extra_directives=list(profile.directives),
        job_script_prologue=[*profile.prologue, settings],
        interface=profile.interface,
        security=True,
        shared_temp_directory=str(profile.shared_folder.resolve()),
        log_directory=str(profile.logs.resolve()),
        job_name="dualflow",
        worker_extra_args=["--no-dashboard"],
        scheduler_options={"dashboard": False, "dashboard_address": ":0"},
    )
    try:
        with cluster:
            yield cluster
    finally:
        for name in _CERTIFICATES:  # dask-jobqueue leaves these files open, and closing removes them
            getattr(cluster, name).close()


def _test_job(cluster: Any, path: Path) -> None:
    """Let SLURM check a job, because dask-jobqueue waits in vain for a job that SLURM refuses."""
    check = subprocess.run(
        ["sbatch", "--test-only"], input=cluster.job_script(), capture_output=True, text=True, check=False
    )
    if check.returncode:
        reason = " ".join(check.stderr.split()) or f"exit code {check.returncode}"
        raise ClusterError(f"{path}: SLURM refuses the job ({reason}); correct the profile")


@contextmanager
def _submitted(cluster: Any, jobs: int) -> Iterator[None]:
    """Keep `jobs` jobs in the queue or running: a job that reached its time limit is replaced."""
    stop = Event()

    def replace_ended() -> None:
        while not stop.wait(_RESUBMIT_S):
            cluster.scale(jobs=jobs)

    cluster.scale(jobs=jobs)
    thread = Thread(target=replace_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
