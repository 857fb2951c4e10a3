"""`make crash-test`: end every step of a tiny study at random moments, repeat it, and compare with an unbroken study.

Each trial takes the study as it is before one step, starts the step and ends it by force, up to three times: by SIGKILL
to it or to it and its workers, by SIGTERM, inside a flush or a rename, or by a full disk. The same command then runs
until it ends well. Volumes, weights and tables must equal the unbroken ones by hash, all manifests verify, no temporary
file stays, and MLflow has one run and each point once.

With `--runs`, the whole workflow is ended at random moments too: `dualflow run`, its Snakemake, or all its processes;
after it has ended well, one output is damaged, and the same command repairs it. As root, it also runs on a disk that
fills up again and again.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import psutil
from crash_study import (
    RESULTS,
    STEPS,
    Results,
    copy_study,
    damage,
    defects,
    deliver,
    is_done,
    preload,
    start,
    write_config,
)  # fmt: skip

from dualflow.commands.run_lock import clear_study
from dualflow.data.shared_scans import share_scans
from dualflow.layout import Layout
from dualflow.progress import track

WEIGHTS = {
    "train": 20, "convert": 14, "evaluate": 14, "report": 12, "fit": 10, "index": 6, "qc": 6, "quarantine": 4,
    "participants": 3, "ceilings": 3, "check": 3, "cohort": 2, "preprocess": 1,
}  # fmt: skip
"""Step -> share of the trials: fewer of the slow ones."""
SLOW = ("cohort", "preprocess")
ATTEMPTS = 3
DISK_MIB = range(2, 300, 12)
"""Sizes of a disk on which the workflow runs until it is full."""
RUN_GAP_S = 12.0
"""Mean seconds until a whole run is ended."""


def die_in(name: str, count: int) -> Callable[[], None]:
    """Make this process kill itself at the `count`-th call of a function of `os`."""

    def prepare() -> None:
        real, left = getattr(os, name), [count]

        def dying(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, dying)

    return prepare


def fill_disk(limit: int) -> Callable[[], None]:
    """Let this process and its children write no file beyond `limit` bytes."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return prepare


@dataclass
class CrashTest:
    """Trials of the steps of one study.

    Attributes:
        root: scratch folder.
        draw: all random choices.
        seconds: duration of each step of the unbroken study.
        expected: results after each step of the unbroken study.
        kinds: how often each kind of end was tried.
    """

    root: Path
    draw: random.Random
    seconds: dict[str, float] = field(default_factory=dict)
    expected: dict[str, Results] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def run_unbroken(self, last: str, scans: Path | None = None) -> None:
        """Run the steps up to the last, and keep the study as it is before each.

        Args:
            last: name of the last step.
            scans: results of a study of the same people on the same grid, whose preprocessed scans are taken over.
        """
        study = self.root / "unbroken"
        write_config(study)
        if scans:
            share_scans(Layout(scans), Layout(study / RESULTS))
        for step in track([*STEPS][: [*STEPS].index(last) + 1], "unbroken study"):
            copy_study(study, self.root / f"before-{step}")
            begun = time.perf_counter()
            _, status = os.waitpid(start(step, study), 0)
            if status or defects(study):
                sys.exit(f"{step} of the unbroken study failed: {defects(study)} {(study / 'output.txt').read_text()}")
            self.seconds[step] = time.perf_counter() - begun
            self.expected[step] = Results.of(study)

    def try_step(self, step: str, number: int) -> str:
        """End a step up to three times, repeat it until it ends well; return what is wrong, or ''."""
        folder = self.root / f"trial-{number}"
        copy_study(self.root / f"before-{step}", folder)
        try:
            for _ in range(self.draw.randint(1, 3)):
                if not is_done(step, folder):
                    self._end(step, folder)
            for _ in range(ATTEMPTS):
                clear_study(folder / RESULTS, lambda _: None)  # as `dualflow run` does
                if is_done(step, folder) or os.waitpid(start(step, folder), 0)[1] == 0:
                    deliver(folder)
                    return defects(folder) or self.expected[step].difference(Results.of(folder))
            return f"the repeated step fails: {(folder / 'output.txt').read_text()[-500:]}"
        finally:
            shutil.rmtree(folder)

    def _end(self, step: str, folder: Path) -> None:
        """Start a step and end it by force."""
        kind = self.draw.choices(("kill", "kill all", "terminate", "in a write", "full disk"), (5, 2, 2, 3, 2))[0]
        self.kinds[f"{step}: {kind}"] += 1
        if kind == "in a write":
            os.waitpid(start(step, folder, die_in(self.draw.choice(("fsync", "replace")), self.draw.randint(1, 20))), 0)
        elif kind == "full disk":
            os.waitpid(start(step, folder, fill_disk(int(2 ** self.draw.uniform(6, 20)))), 0)
        else:
            child = start(step, folder)
            time.sleep(self.draw.uniform(0, 1.05 * self.seconds[step]))
            if kind == "kill all":
                os.killpg(os.getpgid(child), signal.SIGKILL)
            else:
                os.kill(child, signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
            os.waitpid(child, 0)

    def try_workflow(self, kills: int) -> str:
        """End the whole workflow `kills` times, finish it, damage an output, repair it; return what is wrong, or ''."""
        folder = self.root / "workflow"
        write_config(folder)
        for _ in track(range(kills), "whole runs"):
            if (process := self._start_run(folder)) is None:
                break
            time.sleep(self.draw.expovariate(1 / RUN_GAP_S))
            self._end_run(process)
        for done in ("", damage):
            what = done(folder, self.draw) if done else "the killed runs"
            for _ in range(ATTEMPTS):
                process = self._start_run(folder)
                if process.wait() == 0:
                    break
            else:
                return f"after {what}: {self._output()}"
            results = Results.of(folder)
            if done:  # a repaired training is a second run
                results = replace(results, runs=self.expected["check"].runs, points=self.expected["check"].points)
            if wrong := defects(folder) or self.expected["check"].difference(results):
                return f"after {what}: {wrong}"
        return ""

    def try_full_disk(self) -> str:
        """Run the workflow on a disk that is full again and again; return what is wrong, or ''."""
        folder = self.root / "disk"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB[0]}m", "none", folder], check=True)
        try:
            write_config(folder)
            for size in track(DISK_MIB, "full disks"):
                subprocess.run(["mount", "-o", f"remount,size={size}m", folder], check=True)
                if self._start_run(folder).wait() == 0:
                    # There may have been no space for the last tracking records.
                    subprocess.run(["mount", "-o", f"remount,size={DISK_MIB[-1]}m", folder], check=True)
                    deliver(folder)
                    return defects(folder) or self.expected["check"].difference(Results.of(folder))
                self.kinds["run: full disk"] += 1
            return f"fails on {DISK_MIB[-1]} MiB: {self._output()}"
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)

    def _output(self) -> str:
        return (self.root / "output.txt").read_text()[-500:]

    def _start_run(self, folder: Path) -> subprocess.Popen[bytes]:
        with (self.root / "output.txt").open("ab") as output:
            command = [sys.executable, "-m", "dualflow.cli", "run", "--config", "crash.yaml", "--cores", "2"]
            return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)

    def _end_run(self, process: subprocess.Popen[bytes]) -> None:
        kind = self.draw.choice(("kill", "kill Snakemake", "terminate", "kill all"))
        self.kinds[f"run: {kind}"] += 1
        run = psutil.Process(process.pid)
        family = run.children(recursive=True)
        victims = {
            "kill": [run],
            "kill Snakemake": run.children() or [run],
            "terminate": [run],
            "kill all": [run, *family],
        }[kind]
        for victim in victims:
            if victim.is_running():
                victim.send_signal(signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
        process.wait()


@click.command(help=__doc__)
@click.option("--trials", default=550, show_default=True, help="Trials of single steps; each ends a step 1 to 3 times.")
@click.option("--runs", default=40, show_default=True, help="Ends of the whole workflow.")
@click.option("--seconds", type=float, help="Stop the trials after this time, and leave out the slow steps.")
@click.option(
    "--until", "last", type=click.Choice([*STEPS]), default="check", help="Leave out the steps after this one."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--scans", type=click.Path(path_type=Path), help="Take over the preprocessed scans of a finished study.")
def main(trials: int, runs: int, seconds: float | None, last: str, seed: int, scans: Path | None) -> None:
    """Run the trials and report."""
    preload()
    failures, done, deadline = 0, 0, time.monotonic() + (seconds or float("inf"))
    with tempfile.TemporaryDirectory(prefix="crash-test-") as scratch:
        test = CrashTest(Path(scratch), random.Random(seed))
        test.run_unbroken(last, scans)
        weights = {step: weight for step, weight in WEIGHTS.items() if step in test.expected}
        steps = test.draw.choices(list(weights), list(weights.values()), k=trials)
        if seconds:
            steps = [step for step in steps if step not in SLOW]
        for number, step in enumerate(track(steps, "steps")):
            if time.monotonic() > deadline:
                break
            done += 1
            if wrong := test.try_step(step, number):
                failures += 1
                print(f"trial {number}, {step}: {wrong}", flush=True)
        if runs and (wrong := test.try_workflow(runs)):
            failures += 1
            print(f"whole workflow, {wrong}", flush=True)
        if runs and os.geteuid() == 0 and (wrong := test.try_full_disk()):
            failures += 1
            print(f"full disks, {wrong}", flush=True)
    for kind, count in sorted(test.kinds.items()):
        print(f"{count:>5} {kind}")
    print(f"{test.kinds.total()} ends by force in {done} trials and {runs} whole runs: {failures} failures")
    sys.exit(min(failures, 1))


if __name__ == "__main__":
    main()
