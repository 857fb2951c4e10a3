"""Snakemake's log as data: the steps it runs, the reason of each, and their times."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TARGET = "all"
"""The rule that only requests the others; it is not a step."""
_RULE = re.compile(r"^(?:local)?rule (\w+):$")
_FIELD = re.compile(r"^    (jobid|wildcards|reason): (.+)$")
_TARGET_COUNT = re.compile(rf"^{TARGET} +1$")
_TOTAL = re.compile(r"^total +(\d+)$")
_FINISHED = re.compile(r"^Finished jobid: (\d+)\b")
_ERROR = re.compile(r"^Error in rule \w+:$")
_UNKNOWN_TARGET = re.compile(r"No rule to produce|Target rules may not contain wildcards")
NO_STEP = "no such step of this study; `dualflow run --help` lists the steps"
"""Line on a target that the workflow does not know."""
_NOTHING = "Nothing to be done"


@dataclass
class Job:
    """One job of Snakemake.

    Attributes:
        rule: name of its rule.
        jobid: its number.
        wildcards: values of the rule's wildcards, as `name=value, name=value`.
        reason: why it runs, in Snakemake's words.
    """

    rule: str
    jobid: str = ""
    wildcards: str = ""
    reason: str = ""

    @property
    def label(self) -> str:
        """The step in words, such as `preprocess shard 0` or `train dualflow seed 0`."""
        words = [self.rule.removesuffix("_shard").replace("_", " ")]
        for pair in filter(None, self.wildcards.split(", ")):
            name, _, value = pair.partition("=")
            words.append(value if name == "model" else f"{name} {value}")
        return " ".join(words)


def parse_jobs(lines: Sequence[str]) -> Iterator[Job]:
    """Yield the jobs that a log announces, without the target rule."""
    job: Job | None = None
    for line in lines:
        if job and (field := _FIELD.match(line)):
            setattr(job, field[1], field[2])
        elif not line.startswith("    "):
            if job:
                yield job
            rule = _RULE.match(line)
            job = Job(rule[1]) if rule and rule[1] != TARGET else None
    if job:
        yield job


def failure_reasons(text: str) -> list[str]:
    """The lines of a log in which dualflow says why it failed, sorted, or else the last lines."""
    lines = text.splitlines()
    reasons = sorted({line for line in lines if line.startswith("dualflow: ")}) or lines[-5:]
    return [*reasons, NO_STEP] if _UNKNOWN_TARGET.search(text) else reasons


class LogFollower:
    """Follows the log of a running Snakemake.

    Attributes:
        total: number of steps to run, 0 until Snakemake has planned them.
        running: jobid -> (job, start time).
        finished: (label, seconds) of each finished step, in order.
        nothing_to_do: whether Snakemake found all steps done.
        text: everything read so far.
    """

    def __init__(self, log: Path, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Follow `log` from byte `start` on."""
        self.total = 0
        self.running: dict[str, tuple[Job, float]] = {}
        self.finished: list[tuple[str, float]] = []
        self.nothing_to_do = False
        self.text = ""
        self._log, self._position, self._clock = log, start, clock
        self._has_target = self._in_error = False

    def update(self) -> None:
        """Read what was appended since the last call."""
        with self._log.open("rb") as stream:
            stream.seek(self._position)
            appended = stream.read()
        # Snakemake writes a block at once and ends it with a newline; an incomplete one is read at the next call.
        appended = appended[: appended.rfind(b"\n") + 1]
        self._position += len(appended)
        text = appended.decode(errors="replace")
        self.text += text
        lines, now = text.splitlines(), self._clock()
        self.running |= {job.jobid: (job, now) for job in parse_jobs(lines)}
        for line in lines:
            self._read_line(line, now)

    def _read_line(self, line: str, now: float) -> None:
        if _TARGET_COUNT.match(line):
            self._has_target = True
        elif total := _TOTAL.match(line):
            self.total = int(total[1]) - self._has_target
        elif line.startswith(_NOTHING):
            self.nothing_to_do = True
        elif (finished := _FINISHED.match(line)) and finished[1] in self.running:
            job, start = self.running.pop(finished[1])
            self.finished.append((job.label, now - start))
        elif _ERROR.match(line):
            self._in_error = True
        elif self._in_error and (field := _FIELD.match(line)) and field[1] == "jobid":
            self.running.pop(field[2], None)
            self._in_error = False
