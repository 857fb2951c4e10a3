"""Where worker processes run: invalid choices are refused at once, and a running scheduler is joined by its address."""

import os
import signal

import pytest

from dualflow.errors import ClusterError, ConfigError
from dualflow.workers import CrashedTask, check_cluster, cluster_choice, run_in_workers

ONE_THREAD = ("--nthreads", "1", "--nworkers", "2")
CALLS: list[int] = []


def act(action, folder):
    """End the process as `action` says, or return the action, the process id and the calls in this process."""
    if action == "kill" or (action == "die once" and not (folder / "died").exists()):
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    CALLS.append(1)
    return action, os.getpid(), len(CALLS), os.environ.get("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def end(process):
    """End the process with this id."""
    os.kill(process, signal.SIGKILL)
    signal.pause()


@pytest.mark.parametrize(
    ("cluster", "workers", "text"),
    [
        ("slrum", None, "choose from: local"),
        ("tcp://node1", None, "tcp://node1:8786"),
        ("slurm", None, "slurm:PROFILE.yaml"),
        ("slurm:missing.yaml", None, "missing.yaml: cannot be read"),
        ("tcp://node1:8786", 2, "--workers 2"),
    ],
)
def test_an_invalid_choice_is_an_error(cluster, workers, text):
    """The error names the value and what was expected."""
    with pytest.raises(ConfigError, match=text):
        check_cluster(cluster, workers)


def test_valid_choices_are_accepted(tmp_path):
    """This machine with any number of workers, an address, and a profile."""
    (tmp_path / "profile.yaml").write_text("jobs: 2\n")
    check_cluster("local", 3)
    for cluster in ("local", "tcp://127.0.0.1:8786", "tls://node-1.site:8786", f"slurm:{tmp_path / 'profile.yaml'}"):
        check_cluster(cluster)


@pytest.mark.slow
def test_a_running_scheduler_is_joined(scheduler, join, tmp_path):
    """Workers stay between tasks, a crash fails its task alone, and the workers outlive the work."""
    address, _ = scheduler
    actions = ["fine", "die once", *["fine"] * 6, "kill"]
    with join(address, *ONE_THREAD):
        outcomes = dict(run_in_workers(act, [(action, tmp_path) for action in actions], cluster=address))
        again = dict(run_in_workers(act, [("fine", tmp_path)] * 4, cluster=address))
    crash = outcomes.pop(8)
    assert isinstance(crash, CrashedTask)
    assert "tcp://" in crash.reason
    assert "read that worker's log" in crash.reason
    assert [outcomes[index][0] for index in range(8)] == actions[:8]
    assert {threads for *_, threads in [*outcomes.values(), *again.values()]} == {"1"}
    assert max(calls for _, _, calls, _ in again.values()) > 1


@pytest.mark.slow
def test_a_lost_scheduler_is_an_error(scheduler, join):
    """A scheduler that ends in the middle is reported in one line."""
    address, process = scheduler
    with join(address, "--nthreads", "1"), pytest.raises(ClusterError, match="connection to the scheduler was lost"):
        list(run_in_workers(end, [(process.pid,)], cluster=address))


@pytest.mark.slow
def test_unsuitable_workers_are_refused(scheduler, join, monkeypatch):
    """Without workers, or with several threads each, nothing runs; the error gives the command."""
    address, _ = scheduler
    monkeypatch.setattr(cluster_choice, "_JOIN_TIMEOUT_S", 3)
    with pytest.raises(ClusterError, match=f"no workers, .*dask worker {address} --nthreads 1"):
        list(run_in_workers(divmod, [(7, 2)], cluster=address))
    monkeypatch.setattr(cluster_choice, "_JOIN_TIMEOUT_S", 60)
    with join(address, "--nthreads", "3", "--nworkers", "1"), pytest.raises(ClusterError, match="has 3 threads"):
        list(run_in_workers(divmod, [(7, 2)], cluster=address))


def test_an_encrypted_scheduler_needs_certificates():
    """Dask's own error is a TypeError."""
    with pytest.raises(ClusterError, match=r"no certificates are configured here .* distributed\.comm\.tls"):
        list(run_in_workers(divmod, [(7, 2)], cluster="tls://127.0.0.1:9"))


def test_no_scheduler_is_an_error(monkeypatch):
    """An address at which nothing answers is reported in one line."""
    monkeypatch.setattr(cluster_choice, "_CONNECT_TIMEOUT_S", 1)
    with pytest.raises(ClusterError, match="no scheduler answers"):
        list(run_in_workers(divmod, [(7, 2)], cluster="tcp://127.0.0.1:9"))
