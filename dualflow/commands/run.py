"""`dualflow run`: Snakemake with one progress display, resumable after any interruption."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGINT

import psutil
import yaml

from dualflow.commands.forced_steps import forcerun, split_forcerun, steps_to_check
from dualflow.commands.run_display import BarDisplay, Display, LineDisplay
from dualflow.commands.run_lock import RUN, clear_study, run_lock
from dualflow.commands.snakemake_log import LogFollower, failure_reasons
from dualflow.commands.steps import CHECK, step_names
from dualflow.commands.workflow_files import workflow_root
from dualflow.commit import refused_writes
from dualflow.config import Config, TrackingConfig, public_uri, write_resolved
from dualflow.errors import InterruptedRunError
from dualflow.lifetime import GRACE_S, PARENTS, kill_tree, parents_of_steps
from dualflow.manifest import DigestCache, verify_manifests
from dualflow.process import interrupt, on_sigterm
from dualflow.progress import PROGRESS_FOLDER, read_states
from dualflow.tracking.database import is_database
from dualflow.tracking.sync import sync, warn_unsent

POLL_S = 0.5
GPUS = Path("/proc/driver/nvidia/gpus")
LOCAL = "local"
PROFILES = ("profile*.yaml", "config*.yaml")
"""Names of the files of Snakemake's profiles."""


def run_workflow(config: Config, cores: str, options: Sequence[str] = (), steps: Sequence[str] | None = None) -> int:
    """Run Snakemake on `config` and return the exit code.

    Only one run works in a folder at a time; a second one waits for the first. Snakemake inherits the lock, and it and
    its steps end soon after this process does. On Ctrl-C and SIGTERM, running steps save their work first.

    Args:
        config: the study's configuration.
        cores: number of CPU cores, or `all`.
        options: more options of Snakemake.
        steps: names of the manifests to make; None makes all of the study.

    Returns:
        0 if Snakemake succeeded, the steps are done and all manifests verify.

    Raises:
        ConfigError: this installation has no workflow.
        DataError: a run of another machine may still work in this folder.
        InterruptedRunError: Ctrl-C or SIGTERM ended the run.
        CommitError: the file system refused a file, as on a full disk.
    """
    layout, digests = config.layout, DigestCache()
    with run_lock() as lock:
        command = snakemake_command(config)
        clear_study(layout.root, print, digests)
        wanted, others = split_forcerun(options)
        checked = map(layout.manifest, steps_to_check(config, options, print, steps))
        log_file = layout.log("snakemake")
        with refused_writes(log_file.parent):
            log_file.parent.mkdir(parents=True, exist_ok=True)
            progress_folder = _empty_folder(layout.log("progress").with_suffix(""))
        with log_file.open("ab") as stream:
            log = LogFollower(log_file, stream.tell())
            targets = [str(layout.manifest(step)) for step in steps or ()]
            command += [*_machine_options(config, cores, options), "--rerun-incomplete", "--show-failed-logs"]
            process = subprocess.Popen(
                [*command, *others, *targets, *forcerun(wanted, checked)],
                stdout=stream,
                stderr=stream,
                env=_environment(progress_folder),
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the steps in order
            )
            exit_code = _watch(process, progress_folder, log)
    if exit_code == 0:
        missing, broken = _unfinished(config, steps, digests, partial=bool(options or steps))
        if broken or (missing and (steps is not None or not options)):
            exit_code = 1  # options of the user may have asked for a part of the workflow
        for step in [*missing, *broken]:
            print(f"{step}: {'not done' if step in missing else 'its outputs do not verify'}", file=sys.stderr)
        if not missing and not broken:
            if log.nothing_to_do:
                asked = "the steps that were asked for" if steps is not None or options else "all steps"
                print(f"nothing to do: {asked} are done")
            if steps is None:
                _print_results(config)
            return 0
    if exit_code:
        _print_failure(log_file, log, exit_code)
    return exit_code


def snakemake_command(config: Config) -> list[str]:
    """The Snakemake command line of a study: this installation's Snakefile, and the resolved configuration."""
    snakefile = workflow_root() / "Snakefile"
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--configfile", str(write_resolved(config)),
    ]  # fmt: skip


def _environment(progress_folder: Path) -> dict[str, str]:
    """Environment variables of Snakemake and its steps."""
    return os.environ | {
        PROGRESS_FOLDER: str(progress_folder.resolve()),
        RUN: "1",
        PARENTS: parents_of_steps(),
        # The rules call `dualflow`, which is beside this Python.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def _unfinished(
    config: Config, steps: Sequence[str] | None, digests: DigestCache, *, partial: bool
) -> tuple[list[str], list[str]]:
    """Steps without a manifest, and steps whose manifest does not verify.

    Args:
        config: the study's configuration.
        steps: the steps that were asked for; None for all of the study.
        digests: cached digests of the outputs.
        partial: whether a part of the workflow was asked for, which leaves the last step outdated.
    """
    layout, required = config.layout, step_names(config) if steps is None else steps
    missing = [step for step in required if not layout.manifest(step).is_file()]
    # Manifests of other configurations do not matter.
    relevant = {step for step in required if step != CHECK or not partial}
    return missing, [step for step in verify_manifests(layout.root / "manifests", digests) if step in relevant]


def _empty_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


def _machine_options(config: Config, cores: str, options: Sequence[str]) -> list[str]:
    """Cores and GPUs of this machine, which limit the jobs of a cluster too, so one has none.

    A machine with GPUs runs one training at a time, because each job takes the first GPUs.
    """
    if _executor(options) != LOCAL:
        return []
    if config.train.device == "cpu" or not GPUS.is_dir():
        return ["--cores", cores]
    return ["--cores", cores, "--resources", f"gpu={config.train.processes}"]


def _executor(options: Sequence[str]) -> str:
    """Snakemake's executor by its options: that of the profile if none is named; '' if it is not known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-e", "--executor", nargs="?")
    parser.add_argument("--profile", nargs="?", default=os.environ.get("SNAKEMAKE_PROFILE"))
    known, _ = parser.parse_known_args(options)
    if known.executor or not known.profile:
        return str(known.executor or LOCAL)
    # Snakemake looks for names of profiles in other folders too.
    file = next((file for name in PROFILES for file in sorted(Path(known.profile).glob(name))), None)
    if file is None:
        return ""
    with suppress(yaml.YAMLError):  # Snakemake reports it
        values = yaml.safe_load(file.read_text())
        return str(values.get("executor", LOCAL)) if isinstance(values, dict) else LOCAL
    return ""


def _watch(process: subprocess.Popen[bytes], progress_folder: Path, log: LogFollower) -> int:
    """Show progress until Snakemake ends; return its exit code."""
    display: Display = BarDisplay() if sys.stdout.isatty() else LineDisplay()
    try:
        with on_sigterm(interrupt):
            while True:
                try:
                    exit_code: int | None = process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    exit_code = None
                log.update()
                display.show(log, read_states(progress_folder))
                if exit_code is not None:
                    return exit_code
    except KeyboardInterrupt:
        print("stopping; running steps save their work", file=sys.stderr, flush=True)
        _stop(process.pid)
        process.wait()
        raise InterruptedRunError("interrupted; the same command resumes") from None
    finally:
        display.close()


def _stop(snakemake: int) -> None:
    """End a Snakemake process and its jobs: as Ctrl-C would, by SIGTERM to the steps, after GRACE_S by SIGKILL."""
    try:
        process = psutil.Process(snakemake)
        family = [process, *process.children(recursive=True)]
        shells = process.children()
    except psutil.NoSuchProcess:
        return
    with suppress(psutil.NoSuchProcess):
        process.send_signal(SIGINT)  # it cancels the jobs of a cluster
        process.terminate()  # in a background job of a shell, SIGINT is ignored
    # Not to the shells and to `tee`, which end with the steps: these still write to them.
    for shell in shells:
        with suppress(psutil.NoSuchProcess):
            for step in shell.children():
                if step.name() != "tee":
                    step.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_S)
    kill_tree(alive)


def _print_results(config: Config) -> None:
    """Print where the results are."""
    layout = config.layout
    results = {
        "report": layout.report,
        "quality of the scans": layout.qc,
        "synthetic volumes": layout.derivatives,
        "tables": layout.tables,
        "excluded scans": layout.quarantine,
    }
    print()
    for name, path in results.items():
        if path.exists():
            print(f"{name:<21}{path}")
    print(f"{'tracked runs':<21}{_way_to_runs(config)}")
    if any(layout.pending_records.glob("*/*.json")):  # of steps that were killed, or of a time without the server
        sync(config.tracking, layout.pending_records)
    warn_unsent(layout.pending_records)


def _way_to_runs(config: Config) -> str:
    """The address of the server with the tracked runs, or the command that serves those of a database."""
    uri = config.tracking.uri
    if not is_database(uri):
        return public_uri(uri)
    # The URI may have a password, which the resolved configuration holds too.
    options = [] if uri == TrackingConfig().uri else ["--config", str(write_resolved(config))]
    return shlex.join(["dualflow", "ui", *options])


def _print_failure(log_file: Path, log: LogFollower, exit_code: int) -> None:
    """Print why the run failed."""
    when = f"after {len(log.finished)} of {log.total} steps" if log.total else "before the first step"
    print(f"\nfailed with exit code {exit_code} {when}; Snakemake's log: {log_file}", file=sys.stderr)
    for line in failure_reasons(log.text):
        print(f"  {line}", file=sys.stderr)
