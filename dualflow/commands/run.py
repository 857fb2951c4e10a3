"""`dualflow run`: Snakemake with one live display, safe to give again after any kind of end."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from dualflow.commit import sweep_temporaries
from dualflow.config import Config, write_resolved
from dualflow.errors import ConfigError
from dualflow.manifest import forget_broken
from dualflow.progress import PROGRESS_FOLDER, live_bars, read_states

POLL_S = 0.5
LINE_EVERY_S = 60.0
GPUS = Path("/proc/driver/nvidia/gpus")
OVERALL = re.compile(r"^(\d+) of (\d+) steps")


class Display(Protocol):
    """Shows how far a run is."""

    def show(self, jobs: dict[str, tuple[str, int, int, str]], done: int, total: int) -> None:
        """Show running jobs (label, done, total, note) and finished steps."""

    def close(self) -> None:
        """End the display."""


def run_workflow(config: Config, cores: str, options: Sequence[str]) -> int:
    """Run Snakemake on `config` to the end; return its exit code.

    Only one run works in a folder at a time; a second one waits for the first, then finds its work done. The lock is
    held by Snakemake too, so it stays while Snakemake lives and goes with it, even if this process is killed.

    Raises:
        ConfigError: there is no Snakefile here.
    """
    if not Path("Snakefile").is_file():
        raise ConfigError(f"{Path.cwd()}: holds no Snakefile; run this in dualflow's own folder")
    layout = config.layout
    with _only_one(Path(".snakemake") / "dualflow.lock") as lock:
        resolved = write_resolved(config)
        sweep_temporaries(layout.root)
        for step in forget_broken(layout.root / "manifests"):
            print(f"{step}: its outputs were changed or removed since; it will be done again")
        folder = layout.log("progress").with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.iterdir():
            stale.unlink()
        command = [sys.executable, "-m", "snakemake", "--configfile", str(resolved)]
        environment = os.environ | {
            PROGRESS_FOLDER: str(folder.resolve()),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        log = layout.log("snakemake")
        with log.open("ab") as stream:
            # Nobody else can be at work here, so a Snakemake lock is one that a killed run left.
            subprocess.run([*command, "--unlock"], stdout=stream, stderr=stream, env=environment, check=False)
            start = stream.tell()
            process = subprocess.Popen(
                [*command, "--cores", cores, *_gpus(config), "--rerun-incomplete", "--show-failed-logs", *options],
                stdout=stream,
                stderr=stream,
                env=environment,
                pass_fds=[lock.fileno()],
            )
            code = _watch(process, folder, log, start)
    _say_where(config, code, log, start)
    return code


def _gpus(config: Config) -> list[str]:
    """On a machine with GPUs, room for one training at a time: each takes the first ones."""
    if config.train.device == "cpu" or not GPUS.is_dir():
        return []
    return ["--resources", f"gpu={config.train.processes}"]


def _watch(process: subprocess.Popen[bytes], folder: Path, log: Path, start: int) -> int:
    display: Display = _Bars() if sys.stdout.isatty() else _Lines()
    try:
        while (code := process.poll()) is None:
            display.show(read_states(folder), *_overall(log, start))
            time.sleep(POLL_S)
        display.show(read_states(folder), *_overall(log, start))
    except KeyboardInterrupt:
        process.terminate()
        code = process.wait()
    finally:
        display.close()
    return code


def _overall(log: Path, start: int) -> tuple[int, int]:
    """Finished and planned steps, as Snakemake last said."""
    with log.open("rb") as stream:
        stream.seek(start)
        found = [
            match for line in stream.read().decode(errors="replace").splitlines() if (match := OVERALL.match(line))
        ]
    return (int(found[-1][1]), int(found[-1][2])) if found else (0, 0)


class _Bars:
    """Live bars on a terminal."""

    def __init__(self) -> None:
        self.bars = live_bars()
        self.bars.start()
        self.overall = self.bars.add_task("[bold]all steps", total=None, note="")
        self.tasks: dict[str, Any] = {}

    def show(self, jobs: dict[str, tuple[str, int, int, str]], done: int, total: int) -> None:
        """Show running jobs (label, done, total, note) and finished steps."""
        self.bars.update(self.overall, completed=done, total=total or None)
        for key, (label, count, of, note) in jobs.items():
            if of and key not in self.tasks:
                self.tasks[key] = self.bars.add_task(label, total=of, note="")
            if key in self.tasks:
                self.bars.update(self.tasks[key], completed=count, note=note)

    def close(self) -> None:
        """End the display."""
        self.bars.stop()


class _Lines:
    """A line per finished step and one a minute, where there is no terminal."""

    def __init__(self) -> None:
        self.said, self.when = -1, time.monotonic()

    def show(self, jobs: dict[str, tuple[str, int, int, str]], done: int, total: int) -> None:
        """Say how many steps are done and what is at work."""
        if done != self.said or time.monotonic() - self.when > LINE_EVERY_S:
            self.said, self.when = done, time.monotonic()
            at_work = ", ".join(f"{label} {count}/{of}" for label, count, of, _ in jobs.values() if count < of)
            print(f"{done} of {total or '?'} steps done" + (f"; {at_work}" if at_work else ""), flush=True)

    def close(self) -> None:
        """End the display."""


@contextmanager
def _only_one(path: Path) -> Iterator[IO[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is at work in this folder; waiting for it to end", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def _say_where(config: Config, code: int, log: Path, start: int) -> None:
    layout = config.layout
    with log.open("rb") as stream:
        stream.seek(start)
        text = stream.read().decode(errors="replace")
    problems = sorted({line for line in text.splitlines() if line.startswith("dualflow: ")})
    if code:
        print(f"\nEnded with exit code {code}. Snakemake's log: {log}", file=sys.stderr)
        for line in problems or text.splitlines()[-5:]:
            print(f"  {line}", file=sys.stderr)
    if layout.qc.is_file():
        print("\nquality of the scans", layout.qc)
    if not layout.report.is_file():
        return
    print("report              ", layout.report)
    print("synthetic volumes   ", layout.derivatives)
    print("tables              ", layout.tables)
    print("quarantined scans   ", layout.quarantine)
    ui = Path(sys.executable).parent / "mlflow"
    shown = ui.relative_to(Path.cwd()) if ui.is_relative_to(Path.cwd()) else ui.name
    print(f"look at the runs     {shown} ui --backend-store-uri {config.tracking.uri}")
