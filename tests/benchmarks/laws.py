"""The benchmark: both laws of the simulated cohort, at 240 and at 60 training subjects.

    python tests/benchmarks/laws.py --config configs/benchmark.yaml

A study of 60 is a part of the study of 240: it reuses the simulated and preprocessed scans as hard links, and has the
same test subjects.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dualflow.cohort import LAWS
from dualflow.commands.run import run_workflow
from dualflow.config import Config, load_config
from dualflow.data.shared_scans import share_scans

HELD_OUT = 60
"""Validation and test subjects of the configuration."""
SIZES = (240, 60)


def study(path: Path, law: str, people: int, overrides: list[str]) -> Config:
    """Return the configuration of one study."""
    name = f"{load_config(path).study.name}-{law}-{people}"
    changes = [f"study.name={name}", f"cohort.law={law}", f"cohort.subjects={people + HELD_OUT}"]
    return load_config(path, [*changes, *overrides])


def main() -> int:
    """Run the studies one after the other; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/benchmark.yaml"))
    parser.add_argument("--cores", default="all")
    parser.add_argument("--law", choices=list(LAWS), action="append", help="only this law; may be repeated")
    parser.add_argument("--people", type=int, choices=SIZES, action="append", help="only this size; may be repeated")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    for law in options.law or LAWS:
        largest = study(options.config, law, SIZES[0], options.overrides)
        for people in options.people or SIZES:
            config = study(options.config, law, people, options.overrides)
            if people != SIZES[0]:
                labels = [f"C{index:04d}" for index in range(1, people + HELD_OUT + 1)]
                share_scans(largest.layout, config.layout, labels)
            print(f"{config.study.name}: {people} training subjects, {law} law", flush=True)
            if exit_code := run_workflow(config, options.cores):
                return exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
