"""Damage files at random and read them: `make fuzz`, or `python tests/fuzz/fuzz.py --target card --cases 10000`.

A case fails if another error than a DualflowError escapes, if it takes more than 2 s of CPU time or 512 MiB of memory,
if it changes a file outside its folder, or if it runs code from the data. Failures are reduced and written to `--out`;
a file of `tests/fuzz/corpus/` is replayed by the tests.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import click

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(Path(__file__).parent)]

from audit import watched  # noqa: E402
from mutator import damaged  # noqa: E402
from targets import TARGETS, Target  # noqa: E402

from dualflow.errors import DualflowError  # noqa: E402

MAX_S, MAX_BYTES = 2.0, 512 << 20
REDUCTION_S = 30.0
PROGRESS_S = 5.0


class OvertimeError(BaseException):
    """A case that used up its CPU time; no `except Exception` holds it back."""


class ChangeError(AssertionError):
    """A case that changed a file outside its folder, or ran code from its data."""


def failure(target: Target, data: bytes, folder: Path) -> BaseException | None:
    """Read one damaged file in a folder of its own; return the error that must not happen."""
    path = folder / target.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    error: BaseException | None = None
    with _cpu_limit(), watched(folder) as events:
        try:
            target.read(folder)
        except DualflowError as refused:
            if len(str(refused).splitlines()) != 1:
                error = refused
        except (Exception, OvertimeError) as escaped:
            error = escaped
    return error or (ChangeError("; ".join(events)) if events else None)


def prepare(target: Target, folder: Path) -> None:
    """Write the files beside the damaged one."""
    for name, content in target.beside().items():
        (folder / name).write_bytes(content)


def read_undamaged(target: Target, folder: Path) -> None:
    """Read each valid content once, because a first read also imports modules."""
    for data in target.seeds():
        failure(target, data, folder)


def case(name: str, seed: int, index: int) -> bytes:
    """The damaged content of a target, the same for the same seed and index."""
    target = TARGETS[name]
    return damaged(random.Random(f"{name} {seed} {index}"), target.seeds(), target.tokens, target.focus)


def signature(error: BaseException) -> str:
    """Type of an error and the last line of dualflow that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/dualflow/" in frame.filename]
    place = f"{frames[-1].filename.rpartition('/dualflow/')[2]}:{frames[-1].name}" if frames else "outside dualflow"
    return f"{type(error).__name__} in {place}"


def reduced(target: Target, data: bytes, folder: Path, wanted: str) -> bytes:
    """A shorter content that fails in the same way: pieces are removed while it does."""
    deadline, size = time.monotonic() + REDUCTION_S, len(data) // 2
    while size and time.monotonic() < deadline:
        start = 0
        while start < len(data) and time.monotonic() < deadline:
            shorter = data[:start] + data[start + size :]
            error = failure(target, shorter, folder)
            if error is not None and signature(error) == wanted:
                data = shorter
            else:
                start += size
        size //= 2
    return data


def run(name: str, cases: int, seed: int, out: Path) -> Counter[str]:
    """Read `cases` damaged files of one target; return how often each failure occurred."""
    target, failures, start = TARGETS[name], Counter[str](), time.monotonic()
    shown = start
    warnings.simplefilter("ignore")
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder = Path(scratch)
        prepare(target, folder)
        read_undamaged(target, folder)
        limit_memory()
        for index in range(cases):
            data = case(name, seed, index)
            if (error := failure(target, data, folder)) is not None:
                kind = signature(error)
                failures[kind] += 1
                if failures[kind] == 1:
                    _keep(out / name, reduced(target, data, folder, kind), f"{kind}: {error!r:.300} (case {index})")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(exist_ok=True)
                prepare(target, folder)
            if (now := time.monotonic()) - shown > PROGRESS_S or index + 1 == cases:
                shown = now
                rate = (index + 1) / (now - start)
                print(f"{name}: {index + 1} of {cases} cases, {rate:.0f} a second, {len(failures)} kinds of failure",
                      flush=True)  # fmt: skip
    return failures


def limit_memory() -> None:
    """Limit the address space of this process to what it uses and MAX_BYTES."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, resource.RLIM_INFINITY))


@contextmanager
def _cpu_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OvertimeError(f"more than {MAX_S:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _keep(folder: Path, data: bytes, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    print(f"FAILURE {path}: {text}", flush=True)


@click.command()
@click.option("--cases", default=1_000_000, show_default=True, help="Number of cases over all targets.")
@click.option("--seed", default=0, show_default=True)
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)), help="Default: all.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/fuzz"), show_default=True)
def main(cases: int, seed: int, names: tuple[str, ...], out: Path) -> None:
    """Read damaged files; the exit code is 1 if a case failed."""
    names, failed, start = names or tuple(TARGETS), False, time.monotonic()
    for position, name in enumerate(names):
        share = cases // len(names) + (position < cases % len(names))
        if pid := os.fork():  # a crash of a native reader ends one target
            failed |= os.waitpid(pid, 0)[1] != 0
        else:
            try:
                failures = run(name, share, seed, out)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
            os._exit(bool(failures))
    print(f"{cases} cases in {time.monotonic() - start:.0f} s: {'failures, see above' if failed else 'no failure'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
