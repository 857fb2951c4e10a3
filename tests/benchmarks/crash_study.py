"""A tiny study for the crash test: its steps as commands in forked children, its results, and how to compare them."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dualflow.commands.steps import manifests_of
from dualflow.manifest import manifest_outputs, verify_manifests
from dualflow.temporaries import TEMP_PREFIX

CONFIG = {
    "study": {"name": "crash", "side": ["age"]},
    "cohort": {"subjects": 4},
    "split": {"validation": 0.25, "test": 0.25},
    "preprocess": {"spacing_mm": 8.0, "shape": [24, 32, 24], "bias_field": False, "shards": 1, "workers": 1},
    "model": {
        "preset": "dualflow",
        "options": {
            "steps": [1, 1, 1],
            "hidden": [8, 8, 8],
            "context_channels": 8,
            "low_rank": 2,
            "mean": "local_linear",
        },
    },
    "train": {"steps": 8, "validate_every": 2, "precision": "float32", "device": "cpu", "batch_size": 2},
    "baselines": {"models": ["mean_image"]},
    "convert": {"samples": 2, "keep_samples": 1},
    "evaluate": {"bootstrap": 100, "samples": 4, "background_draws": 1, "background_steps": 2},
}
FLOW, BASELINE = "dualflow", "mean_image"
STEPS: dict[str, list[str]] = {
    "cohort": ["cohort-shard", "--shard", "0"],
    "participants": ["cohort-finish"],
    "index": ["index"],
    "preprocess": ["preprocess", "--shard", "0"],
    "quarantine": ["preprocess-finish"],
    "qc": ["qc"],
    "train": ["train", "--model", FLOW],
    "fit": ["train", "--model", BASELINE],
    "convert": ["convert-study", "--model", FLOW],
    "evaluate": ["evaluate", "--model", FLOW, "--model", BASELINE],
    "ceilings": ["evaluate-ceilings"],
    "report": ["report"],
    "check": ["check"],
}
"""Step -> arguments of its command, in the order of the workflow."""
RESULTS = Path("results/crash")
DATABASE = Path("results/mlflow.db")


def write_config(folder: Path) -> None:
    """Write the study's configuration into a working folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "crash.yaml").write_text(yaml.safe_dump(CONFIG))


def preload() -> None:
    """Import what the steps import, once for all children; it starts no thread."""
    import torch

    from dualflow.tracking.mlflow_store import load_client

    torch.set_num_threads(1)
    load_client("sqlite:")


def start(step: str, folder: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """Start a step in a forked child, in a process group of its own; return its process id.

    Args:
        step: name of the step.
        folder: its working folder; its output goes to `output.txt` there.
        prepare: called in the child first.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from dualflow.cli import main

        prepare()
        main([*STEPS[step], "--config", "crash.yaml"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


def is_done(step: str, folder: Path) -> bool:
    """Whether the manifests of a step exist, so that Snakemake does not start it."""
    command, *options = STEPS[step]
    values = list(zip(options[::2], options[1::2], strict=True))
    names = [value for option, value in values if option == "--model"] or [""]
    manifests = manifests_of(command, names, shard="0", seed="0")
    return all((folder / RESULTS / "manifests" / f"{name}.json").is_file() for name in manifests)


def deliver(folder: Path) -> None:
    """Send the tracking records that killed steps left, as the end of `dualflow run` does."""
    if any((folder / RESULTS / "pending").glob("*/*.json")):
        subprocess.run(
            [sys.executable, "-m", "dualflow.cli", "sync", "--config", "crash.yaml"], cwd=folder, check=False
        )


def copy_study(source: Path, target: Path) -> None:
    """Copy a working folder; results that are only ever replaced are linked, not copied."""

    def copy(file: str, other: str) -> None:
        name = Path(file).name
        if name.startswith("mlflow") or name.endswith((".log", ".lock", ".txt")) or "mlartifacts" in file:
            shutil.copy2(file, other)
        else:
            os.link(file, other)

    shutil.copytree(source, target, copy_function=copy)


@dataclass(frozen=True)
class Results:
    """What a finished study holds, without clock times.

    Attributes:
        files: digest of each output that a manifest lists, by path.
        runs: status of each tracked run, by name.
        points: how many points each metric of a run has at each step.
    """

    files: dict[str, str]
    runs: dict[str, str]
    points: dict[tuple[str, str, int], int]

    @classmethod
    def of(cls, folder: Path) -> Results:
        """Read the results in a working folder."""
        root = folder / RESULTS
        outputs = {output for manifest in (root / "manifests").rglob("*.json") for output in _outputs(manifest)}
        files = {str(file.relative_to(root.resolve())): _digest(file) for file in outputs}
        runs, points = _tracked(folder / DATABASE)
        return cls({name: digest for name, digest in sorted(files.items()) if digest}, runs, points)

    def difference(self, other: Results) -> str:
        """The first difference of another study's results; empty if there is none."""
        for mine, theirs in ((self.files, other.files), (self.runs, other.runs), (self.points, other.points)):
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):  # type: ignore[attr-defined]
                    surplus = sorted(map(str, theirs.keys() - mine.keys()))[:3]
                    return f"{key}: {theirs.get(key)}, expected {mine.get(key)}; surplus: {surplus}"  # type: ignore[attr-defined]
        return ""


def defects(folder: Path) -> str:
    """What is broken or left behind in a working folder after a step has ended well; empty if nothing."""
    root = folder / RESULTS
    if broken := verify_manifests(root / "manifests"):
        return f"manifests do not verify: {broken}"
    if left := [path.name for path in root.rglob(f"{TEMP_PREFIX}*")]:
        return f"temporary files stay: {left}"
    if queued := list((root / "pending").glob("*/*.json")):
        return f"{len(queued)} tracking records are not delivered"
    return ""


def damage(folder: Path, draw: random.Random) -> str:
    """Empty, change, cut or remove one output at random; return what was done."""
    root = folder / RESULTS
    outputs = sorted({file for manifest in (root / "manifests").rglob("*.json") for file in _outputs(manifest)})
    file, kind = draw.choice(outputs), draw.choice(("emptied", "changed", "cut", "removed"))
    content = file.read_bytes()
    file.unlink()  # it may be linked to another folder
    if kind != "removed":
        position = draw.randrange(len(content))
        flipped = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        file.write_bytes({"emptied": b"", "changed": flipped, "cut": content[:position]}[kind])
    return f"{file.relative_to(root.resolve())} {kind}"


def _outputs(manifest: Path) -> Iterator[Path]:
    for file, _ in manifest_outputs(manifest, json.loads(manifest.read_text())).values():
        yield file.resolve()


def _digest(file: Path) -> str:
    """Digest of a file without its clock times; empty for manifests, which hold digests of such files, and pages."""
    content = file.read_bytes()
    if "manifests" in file.parts or file.suffix == ".html":
        return ""
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    elif file.suffix == ".json":
        content = json.dumps(_timeless(json.loads(content))).encode()
    elif file.suffix == ".tsv":
        table = pd.read_csv(file, sep="\t")
        if "metric" in table.columns:
            table = table[~table["metric"].str.contains("seconds")]
        content = table[[name for name in table.columns if "seconds" not in name]].to_csv().encode()
    return sha256(content).hexdigest()[:12]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if "seconds" not in key}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _tracked(database: Path) -> tuple[dict[str, str], dict[tuple[str, str, int], int]]:
    if not database.is_file():
        return {}, {}
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute("SELECT run_uuid, name, status FROM runs").fetchall()
        query = "SELECT run_uuid, key, step, COUNT(*) FROM metrics WHERE key NOT LIKE 'system/%' GROUP BY 1, 2, 3"
        metrics = connection.execute(query).fetchall()
    finally:
        connection.close()
    counts = Counter(name for _, name, _ in rows)
    names = {run: name if counts[name] == 1 else f"{name}, one of {counts[name]}" for run, name, _ in rows}
    points = {(names[run], key, step): count for run, key, step, count in metrics}
    return {names[run]: status for run, _, status in rows}, points
