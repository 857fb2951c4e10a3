"""`dualflow doctor`: checks whether this machine and a study's configuration are ready for a run."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from dualflow import __version__
from dualflow.commands.steps import require_test_people
from dualflow.commands.study_config import load_study_config
from dualflow.commands.workflow_files import find_config, workflow_root
from dualflow.config import Config, TrackingConfig, public_uri
from dualflow.errors import ConfigError, DualflowError
from dualflow.process import THREAD_VARIABLES
from dualflow.tracking.database import check_connection, is_remote_database
from dualflow.tracking.model_registry import reason

if TYPE_CHECKING:
    import pandas as pd

MIN_PYTHON = (3, 11)
MIN_SNAKEMAKE = (9, 17)  # 9.10 to 9.16 start more jobs than there are cores and GPUs
LOW_MEMORY_GIB, LOW_DISK_GIB, NO_DISK_GIB = 8, 10, 1
SERVER_TIMEOUT_S = 5.0
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
OPTIONAL_PROGRAMS = {
    "bids-validator-deno": "only to validate a BIDS dataset: pip install bids-validator-deno",
    "dcm2niix": "only to convert DICOM files: https://github.com/rordenlab/dcm2niix",
}


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        level: `fail` prevents a run, `warn` may slow or limit it.
        subject: what was checked.
        detail: the value, and the remedy if it is not ok.
    """

    level: Literal["ok", "warn", "fail"]
    subject: str
    detail: str


def diagnose(config_name: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Print the findings and a verdict; return 1 if a check fails, else 0.

    Args:
        config_name: a configuration to check too: a YAML file, or the name of a packaged one.
        overrides: `section.key=value` for it.
    """
    config, findings = None, []
    if config_name:
        try:
            config = load_study_config(find_config(config_name), overrides)
            findings.append(Finding("ok", "configuration", f"{config_name} is valid"))
        except DualflowError as error:
            findings.append(Finding("fail", "configuration", str(error)))
    checks = [check_installation(), check_torch(config), check_machine(config), check_tracking(config)]
    findings += [finding for check in checks for finding in check]
    findings += [*check_data(config)] if config else []
    for finding in findings:
        print(f"{finding.level:<5} {finding.subject:<20} {finding.detail}")
    failed = any(finding.level == "fail" for finding in findings)
    print("\nnot ready: fix each line that starts with fail" if failed else "\nready to run")
    return int(failed)


def check_installation() -> Iterator[Finding]:
    """Python, dualflow with its workflow, Snakemake, and optional programs."""
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= MIN_PYTHON:
        yield Finding("ok", "Python", python)
    else:
        yield Finding("fail", "Python", f"{python}; install Python {'.'.join(map(str, MIN_PYTHON))} or newer")
    try:
        yield Finding("ok", "dualflow", f"{__version__}, workflow files in {workflow_root()}")
    except DualflowError as error:
        yield Finding("fail", "dualflow", str(error))
    yield _check_snakemake()
    for program, use in OPTIONAL_PROGRAMS.items():
        path = shutil.which(
            program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        )
        yield Finding("ok" if path else "warn", program, path or f"not found; needed {use}")


def _check_snakemake() -> Finding:
    """The version of Snakemake; that of a build from its source may have no number to compare."""
    try:
        installed = version("snakemake")
    except PackageNotFoundError:
        return Finding("fail", "Snakemake", "not installed; pip install snakemake")
    needed = f"snakemake>={'.'.join(map(str, MIN_SNAKEMAKE))}"
    numbers = re.match(r"(\d+)\.(\d+)", installed)
    if numbers is None:
        return Finding("warn", "Snakemake", f"{installed} is no released version; expected {needed}")
    if tuple(map(int, numbers.groups())) < MIN_SNAKEMAKE:
        return Finding("fail", "Snakemake", f"{installed}; install {needed}")
    return Finding("ok", "Snakemake", installed)


def check_torch(config: Config | None) -> Iterator[Finding]:
    """The build of torch, and the GPUs that it sees."""
    if find_spec("torch") is None:
        yield Finding("fail", "torch", "not installed; pip install torch, see https://pytorch.org/get-started/locally")
        return
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("ok", "torch", f"{torch.__version__}, {build}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        properties = torch.cuda.get_device_properties(number)
        yield Finding("ok", f"GPU {number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    needed = config.train.processes if config and config.train.device == "cuda" else 0
    if count < needed:
        yield Finding("fail", "GPU", f"torch sees {count}, train asks for {needed}; set train.device: auto or cpu")
    elif not count and NVIDIA_GPUS.is_dir():
        remedy = "update the driver" if torch.version.cuda else "install a CUDA build of torch"
        yield Finding("warn", "GPU", f"this machine has an NVIDIA GPU that torch cannot use; {remedy}")
    elif not count:
        yield Finding("ok", "GPU", "none found; models are trained and used on the CPU")


def check_machine(config: Config | None) -> Iterator[Finding]:
    """CPU cores and thread limits, memory, and free disk space."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = {name: value for name in THREAD_VARIABLES if (value := os.environ.get(name))}
    too_many = [f"{name}={value}" for name, value in limits.items() if value.isdigit() and int(value) > cores]
    if config and config.train.threads * config.train.processes > cores:
        threads = f"{config.train.threads} threads x {config.train.processes} processes"
        yield Finding("warn", "CPU", f"{cores} cores, a training asks for {threads}; lower train.threads")
    elif too_many:
        yield Finding("warn", "CPU", f"{cores} cores, but {', '.join(too_many)}; lower or unset it")
    else:
        yield Finding("ok", "CPU", f"{cores} cores")
    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    low = "" if total >= LOW_MEMORY_GIB else "; use preprocess.shards: 1, and see `dualflow forecast`"
    yield Finding("warn" if low else "ok", "memory", f"{total:.0f} GiB, {free:.0f} GiB available{low}")
    results = (config.study.results if config else Path("results")).absolute()
    existing = next(folder for folder in (results, *results.parents) if folder.is_dir())
    space = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        yield Finding("fail", "results folder", f"{existing} is not writable; set study.results")
    elif space < LOW_DISK_GIB:
        level: Literal["warn", "fail"] = "fail" if space < NO_DISK_GIB else "warn"
        yield Finding(level, "disk", f"{space:.1f} GiB free in {existing}; free space or set study.results")
    else:
        yield Finding("ok", "disk", f"{space:.0f} GiB free in {existing}")


def check_tracking(config: Config | None) -> Iterator[Finding]:
    """Whether the MLflow store can be reached or written."""
    uri = public_uri((config.tracking if config else TrackingConfig()).uri)
    scheme, _, path, *_ = urlsplit(uri)
    if find_spec("mlflow") is None:
        yield Finding("fail", "MLflow", "not installed; pip install mlflow")
    elif scheme in ("http", "https"):
        try:
            with urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_TIMEOUT_S):
                yield Finding("ok", "MLflow", f"{uri} answers")
        except (OSError, HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            yield Finding(
                "warn", "MLflow", f"{uri} does not answer ({cause}); runs are queued, upload: `dualflow sync`"
            )
    elif scheme == "sqlite":
        file = Path(path.removeprefix("/")).absolute()
        target = next(entry for entry in (file, *file.parents) if entry.exists())
        if os.access(target, os.W_OK):
            yield Finding("ok", "MLflow", f"{uri} is writable")
        else:
            yield Finding("fail", "MLflow", f"{target} is not writable; set tracking.uri")
    elif config and is_remote_database(config.tracking.uri):
        try:
            check_connection(config.tracking.uri)
            yield Finding("ok", "MLflow", f"{uri} answers")
        except ConfigError as error:
            yield Finding("fail", "MLflow", str(error))
        except Exception as error:  # any error of a database
            yield Finding(
                "warn", "MLflow", f"{uri} does not answer ({reason(error)}); runs are queued, upload: `dualflow sync`"
            )
    else:
        yield Finding("ok", "MLflow", f"{uri} (not checked)")


def check_data(config: Config) -> Iterator[Finding]:
    """The study's dataset, and whether its splits have enough people."""
    try:
        require_test_people(config)
    except DualflowError as error:
        yield Finding("fail", "split", str(error))
    if config.embedded:
        from dualflow.commands.make_cohort import subjects_of

        yield Finding("ok", "data", f"{config.cohort.subjects} subjects are simulated; set study.bids for your own")
        people = subjects_of(config)
        paired = {person.label for person in people if person.has_pet}
        yield from _check_people(config, paired, {person.label for person in people})
        return
    from dualflow.data.exclusions import STEP as REVIEW
    from dualflow.data.index import reviewed_scans, subject_of

    try:
        index = reviewed_scans(config.bids, config.study, config.split, config.layout.root)
    except DualflowError as error:
        yield Finding("fail", "data", str(error))
        return
    pairs = int((index.pairs["target"] != "").sum())
    target, lone = config.study.target, len(index.lone_targets)
    text = f"{len(index.pairs)} scans, {pairs} with {target}, {len(index.quarantined)} excluded"
    text += f", {lone} with {target} alone" if lone else ""
    unusable = [row for row in index.quarantined if row.step != REVIEW]
    for guess in index.guesses.values():
        yield Finding("warn", "data", guess)
    if index.unused_targets:
        scan, reason = min(index.unused_targets.items())
        count = len(index.unused_targets)
        yield Finding("warn", "targets", f"{count} not used, their scans are to convert; the first, {scan}: {reason}")
    text += f"; the first is {unusable[0].scan}: {unusable[0].reason}" if unusable else ""
    if not pairs:
        yield Finding("fail", "data", f"{text}; a training needs scans with {target}")
    elif unusable:
        yield Finding("warn", "data", text)
    else:
        yield Finding("ok", "data", text)
    table = config.study.samples or config.bids / "participants.tsv"
    yield from _check_side(index.pairs, config.study.side, table.name)
    if len(index.pairs):
        from dualflow.commands.make_index import require_imputation

        try:
            require_imputation(config, index.pairs)
        except DualflowError as error:
            yield Finding("fail", "impute", str(error))
    if pairs:
        excluded = {subject_of(key) for key in (*(row.scan for row in index.quarantined), *index.lone_targets)}
        paired = set(index.pairs.loc[index.pairs["target"] != "", "subject"])
        yield from _check_people(config, paired, {*index.pairs["subject"], *excluded})


def _check_side(pairs: pd.DataFrame, side: Sequence[str], table: str) -> Iterator[Finding]:
    """Side columns that are unknown in scans: in most of them if `table` spells the labels in another way."""
    for name in side:
        unknown, scans = int(pairs[name].isna().sum()), len(pairs)
        text = f"{name} is unknown in {unknown} of {scans} scans"
        if 2 * unknown > scans:
            yield Finding(
                "warn",
                "side information",
                f"{text}; is it filled in, and does {table} spell the labels as the files do?",
            )
        elif unknown:
            yield Finding("ok", "side information", text)


def _check_people(config: Config, paired: set[str], known: set[str]) -> Iterator[Finding]:
    """The number of people in each split, before any exclusion of duplicates."""
    from dualflow.commands.study_size import size_warnings
    from dualflow.data.split import people_by_split

    try:
        people = people_by_split(paired, config.split, known)
    except DualflowError as error:
        yield Finding("fail", "split", str(error))
        return
    if not people["test"] and (config.split.test or config.split.file):  # else `require_test_people` has said so
        source = config.split.file or f"{people.total()} people with a pair"
        yield Finding("fail", "split", f"{source}: nobody is in the split test; scores need test people")
    elif find_spec("torch") is not None:
        for warning in size_warnings(people):
            yield Finding("warn", "people", warning)
