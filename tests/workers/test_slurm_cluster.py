"""Jobs of SLURM: the script of a job, and its course with a stand-in for SLURM's commands."""

import os
import sys
from pathlib import Path

import pytest

from dualflow.errors import ClusterError, ConfigError
from dualflow.workers import run_in_workers, slurm_cluster
from dualflow.workers.slurm_cluster import SlurmProfile, read_profile

SHIPPED = Path(__file__).parents[2] / "configs/profiles/convert-slurm.yaml"
# Runs the job's script in the background, as SLURM would on a node.
SBATCH = '#!/bin/sh\n[ "$1" = --test-only ] && exit 0\necho "$1" >> "$STAND_IN/jobs"\ncp "$1" "$STAND_IN/job.sh"\n' \
    'bash "$STAND_IN/job.sh" > "$STAND_IN/log" 2>&1 &\necho "Submitted batch job $!"\n'  # fmt: skip
SCANCEL = '#!/bin/sh\nkill "$1"\n'


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Folder of commands that stand in for SLURM's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


def profile_file(folder, text):
    """Write a profile of one job with two workers, and further lines."""
    path = folder / "profile.yaml"
    path.write_text(f"jobs: 1\ncores: 2\nmemory: 2 GiB\ninterface: lo\n{text}\n")
    return path


def test_the_shipped_profile_is_valid():
    """Its values are those of the file, and its memory is that of its cores."""
    profile = read_profile(SHIPPED)
    assert (profile.queue, profile.jobs, profile.cores, profile.memory) == ("normal", 4, 4, "16 GiB")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: 0", "jobs = 0"),
        ("wall_time: 1", "did you mean 'walltime'"),
        ("memory: lots", "memory = 'lots': expected a size"),
        ("walltime: 4:00:00", "walltime = 14400: expected a time in quotes"),
    ],
)
def test_an_invalid_profile_is_an_error(tmp_path, text, message):
    """The error names the file, the key and the value."""
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_profile(path)
    assert str(error.value).startswith(str(path))


def test_the_job_script_holds_the_profile(tmp_path):
    """Queue, account, size, time and prologue stand in the script; its workers have one thread and use TLS."""
    profile = SlurmProfile(
        queue="long", account="lab", cores=8, memory="32 GiB", walltime="1-00:00:00", directives=("--gres=gpu:1",),
        prologue=("module load cuda",), shared_folder=tmp_path, logs=tmp_path / "logs", interface="lo",
    )  # fmt: skip
    with slurm_cluster.slurm_cluster(profile) as cluster:
        script = cluster.job_script()
    lines = script.splitlines()
    for line in ("-p long", "-A lab", "--cpus-per-task=8", "--mem=32G", "-t 1-00:00:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}" in lines
    assert lines.index("module load cuda") < lines.index(next(line for line in lines if "dask_worker" in line))
    for option in (sys.executable, "tls://127.0.0.1", "--nthreads 1", "--nworkers 8", "4.00GiB", "--tls-key"):
        assert option in script
    assert "DASK_INTERNAL_INHERIT_CONFIG" in script


@pytest.mark.slow
def test_jobs_run_the_tasks(stand_in, tmp_path):
    """One job with two workers runs all tasks, and ends with them; the certificates are removed."""
    path = profile_file(tmp_path, "")
    outcomes = dict(run_in_workers(divmod, [(index, 3) for index in range(20)], cluster=f"slurm:{path}"))
    assert outcomes == {index: divmod(index, 3) for index in range(20)}
    assert len((tmp_path / "jobs").read_text().splitlines()) == 1
    assert "--nworkers 2" in (tmp_path / "job.sh").read_text()


@pytest.mark.slow
def test_a_refused_job_is_an_error(stand_in, tmp_path):
    """What sbatch reports is in the error."""
    (stand_in / "sbatch").write_text("#!/bin/sh\necho 'invalid partition: nowhere' >&2\nexit 1\n")
    with pytest.raises(ClusterError, match="invalid partition"):
        list(run_in_workers(divmod, [(7, 2)], cluster=f"slurm:{profile_file(tmp_path, 'queue: nowhere')}"))


def test_slurm_needs_its_commands_and_dask_jobqueue(tmp_path, monkeypatch):
    """Each missing part is named in one line."""
    path = profile_file(tmp_path, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="sbatch is not on the PATH"):
        list(run_in_workers(divmod, [(7, 2)], cluster=f"slurm:{path}"))
    monkeypatch.setattr(slurm_cluster, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'dualflow\[slurm\]'"):
        list(run_in_workers(divmod, [(7, 2)], cluster=f"slurm:{path}"))
