"""`dualflow run --dry-run`: the steps that would run, each with its reason in plain words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualflow.commands.forced_steps import forcerun, split_forcerun, steps_to_check
from dualflow.commands.run import snakemake_command
from dualflow.commands.run_lock import STATE
from dualflow.commands.snakemake_log import failure_reasons, parse_jobs
from dualflow.commands.steps import step_names
from dualflow.config import Config
from dualflow.manifest import verify_manifests

_PARAMETERS = re.compile(r"before: (.*) now: (.*)$")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILES = "files"
"""Name of the digest of the dataset's files."""
_REASONS = {
    "Forced execution": "{causes}",
    "Missing output files": "not done yet",
    "Incomplete output files": "interrupted",
    "Updated input files": "newer input: {files}",
    "Input files updated by another job": "after {files}",
    "Set of input files has changed": "its set of inputs changed",
    "Code has changed": "the workflow's code changed",
    "Params have changed": "{changes}",
    "Software environment definition has changed": "the software environment changed",
}
"""Start of a clause of Snakemake's reason -> plain words."""
_CAUSES = ("asked for", "its outputs were changed or removed", f"{STATE} has no record of its values: checked again")
"""Why a run forces steps: the user's option, changed outputs, finished steps without a record."""


def list_steps(config: Config, options: Sequence[str] = ()) -> int:
    """Print the steps that a run would take, and why; return Snakemake's exit code."""
    layout = config.layout
    folder = layout.root / "manifests"
    # No rule makes the manifests of single scans. Those that list them are broken too.
    broken = set(verify_manifests(folder, retry=True)) & set(step_names(config))
    unrecorded = set(steps_to_check(config, options, print)) - broken
    wanted, options = split_forcerun(options)
    forced = forcerun(wanted, map(layout.manifest, sorted(broken | unrecorded)))
    causes = ", or ".join(words for words, steps in zip(_CAUSES, (wanted, broken, unrecorded), strict=True) if steps)
    # The last --quiet counts: one of the user's would hide the steps.
    shown = ["--quiet", "host"]
    command = [*snakemake_command(config), "--dry-run", "--rerun-incomplete", *options, *shown, *forced]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print("\n".join(failure_reasons(done.stdout + done.stderr)), file=sys.stderr)
        return done.returncode
    rows = [(job.label, plain_reason(job.reason, folder, causes)) for job in parse_jobs(done.stdout.splitlines())]
    if not rows:
        print("nothing to do: all steps are done")
        return 0
    width = max(len(label) for label, _ in rows)
    print(f"{len(rows)} steps would run:")
    for label, reason in rows:
        print(f"  {label:<{width}}  {reason}")
    if not config.embedded and "index" in dict(rows):
        print("the dataset is not checked yet: its index does that, or now `dualflow doctor` with the same options")
    return 0


def plain_reason(reason: str, manifests: Path, causes: str = "") -> str:
    """Snakemake's reason in plain words.

    Args:
        reason: clauses that are separated by semicolons.
        manifests: folder of the manifests; files below it are named as steps.
        causes: why steps are forced.
    """
    clauses = []
    for clause in reason.split("; "):
        start = next((start for start in _REASONS if clause.startswith(start)), None)
        if start is None:
            clauses.append(clause)
            continue
        _, _, details = clause.partition(": ")
        files = sorted(_step_name(file, manifests) for file in details.split(", "))
        clauses.append(_REASONS[start].format(files=", ".join(files), changes=_changes(clause), causes=causes))
    # A step that has never run also reports its inputs, which adds no information.
    return clauses[0] if clauses[0] == _REASONS["Missing output files"] else "; ".join(clauses)


def _step_name(file: str, manifests: Path) -> str:
    path = Path(file)
    return str(path.relative_to(manifests).with_suffix("")) if path.is_relative_to(manifests) else file


def _changes(clause: str) -> str:
    """What has changed of a rule's parameters: values as `section.key old -> new`, if they can be read."""
    parameters, changed = _PARAMETERS.search(clause), "configuration changed"
    if parameters is None:
        return changed
    try:
        old, new = (dict(_leaves(ast.literal_eval(f"[{text}]"))) for text in parameters.groups())
    except (ValueError, SyntaxError):
        return changed
    changes = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
    files = ["the dataset's files changed"] if changes.pop(_FILES, None) else []
    values = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in changes.items())
    return "; ".join([*([f"{changed}: {values}"] if values else []), *files]) or changed


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and not name:
        for inner in value:
            yield from _leaves(inner)
    else:
        yield name or (_FILES if _DIGEST.fullmatch(str(value)) else "value"), value
