"""Mutation score of core modules: `make mutants`, or `python tests/mutation/mutants.py imaging/affines --sample 50`.

Cosmic Ray changes one operator, number or condition of a module; a test of the module should fail, or else one of its
package. Its own runner changes files of the checkout and starts a process per mutant, which imports torch for seconds.
Here the libraries are imported once, and each mutant is imported from memory in a forked child. The sample is drawn
from the places that can be changed, so that a place with many operators counts once. Equivalent mutants are in
`survivors.md`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.abc
import importlib.util
import os
import random
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[2]
PACKAGE, TESTS = ROOT / "dualflow", ROOT / "tests"
SURVIVORS = Path(__file__).with_name("survivors.md")
MODULES = [
    "commit", "temporaries", "digests", "layout", "imaging/nifti_header", "imaging/geometry", "imaging/affines",
    *(f"flows/{path.stem}" for path in sorted((PACKAGE / "flows").glob("*.py")) if path.stem != "__init__"),
]  # fmt: skip
LIBRARIES = ["torch", "monai.transforms", "monai.networks.nets", "nibabel", "SimpleITK", "pandas", "scipy.ndimage",
             "scipy.stats", "sklearn.linear_model", "pydantic", "hypothesis", "safetensors.torch", "psutil", "filelock",
             "bids2table", "yaml", "packaging"]  # fmt: skip
# Identity instead of equality changes nothing for most values, and names are replaced by tests of the type checker.
SKIPPED = re.compile(r"_Is$|_IsNot$|Variable")
PYTEST = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:cov", "--hypothesis-seed=0",
          "-m", "not slow", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # fmt: skip
LIMIT_S = 600.0


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Attributes:
        module: name such as `flows/linalg`.
        line: number of the first changed line.
        change: the changed lines before and after.
        source: the whole changed text.
    """

    module: str
    line: int
    change: str
    source: str


@dataclass(frozen=True)
class Place:
    """A place of a module that operators can change.

    Attributes:
        module: name such as `flows/linalg`.
        choices: operators, each with the number of this place among those that it can change.
    """

    module: str
    choices: tuple[tuple[str, int], ...]

    def mutant(self, rng: random.Random) -> Mutant | None:
        """Apply a random operator; None if only an annotation changes."""
        source = (PACKAGE / f"{self.module}.py").read_text()
        name, occurrence = rng.choice(self.choices)
        text = mutate_code(source, get_operator(name)(), occurrence)
        if text is None or _meaning(text) == _meaning(source):
            return None
        before, after = source.splitlines(), text.splitlines()
        line = next(number for number, pair in enumerate(zip(before, after, strict=False), 1) if pair[0] != pair[1])
        changed = list(difflib.unified_diff(before, after, lineterm="", n=0))[3:]
        change = " => ".join(" ".join(entry[1:].strip() for entry in changed if entry[0] == sign) for sign in "-+")
        return Mutant(self.module, line, change, text)


def places_of(module: str) -> list[Place]:
    """The places of a module, in the order of its text."""
    nodes = list(ast_nodes(get_ast((PACKAGE / f"{module}.py").read_text())))
    choices = defaultdict(list)
    for name in sorted(operator_names()):
        if not SKIPPED.search(name):
            positions = [position for node in nodes for position in get_operator(name)().mutation_positions(node)]
            for occurrence, position in enumerate(positions):
                choices[position].append((name, occurrence))
    return [Place(module, tuple(pairs)) for _, pairs in sorted(choices.items())]


def sample_of(modules: Sequence[str], size: int, seed: int) -> list[Mutant]:
    """Mutants of `size` random places, by module and line; of all places if `size` is 0."""
    rng = random.Random(seed)
    places = [place for module in modules for place in places_of(module)]
    rng.shuffle(places)
    mutants = (mutant for place in places if (mutant := place.mutant(rng)) is not None)
    return sorted(islice(mutants, size or None), key=lambda mutant: (mutant.module, mutant.line))


def _meaning(source: str) -> str | None:
    """The syntax tree without annotations and docstrings; None if the text does not parse."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(0)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def files_for(module: str) -> list[str]:
    """The test file that mirrors a module, or else those beside it and in contracts/ that import it."""
    folder, _, name = module.rpartition("/")
    mirror = TESTS / folder / f"test_{name}.py"
    if mirror.is_file():
        return [str(mirror)]
    pattern = re.compile(rf"from dualflow\.{module.replace('/', '.')} import")
    candidates = [*(TESTS / folder).glob("test_*.py"), *(TESTS / "contracts").glob("test_*.py")]
    importing = [str(path) for path in sorted(candidates) if pattern.search(path.read_text())]
    return importing or [str(TESTS / folder / "test_model.py")]


def files_beside(module: str) -> list[str]:
    """The tests of the module's package and the contracts, without `files_for`; none for a module without package."""
    folder = module.rpartition("/")[0]
    candidates = [*(TESTS / folder).glob("test_*.py"), *(TESTS / "contracts").glob("test_*.py")] if folder else []
    package = f"from dualflow.{folder.replace('/', '.')}"
    return [
        str(path) for path in sorted(candidates) if package in path.read_text() and str(path) not in files_for(module)
    ]


class MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of dualflow from memory."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.mutant = f"dualflow.{mutant.module.replace('/', '.')}", mutant

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of the changed module; None for all others."""
        origin = PACKAGE / f"{self.mutant.module}.py"
        return importlib.util.spec_from_file_location(fullname, origin, loader=self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed text."""
        exec(compile(self.mutant.source, str(PACKAGE / f"{self.mutant.module}.py"), "exec"), module.__dict__)


def outcome(files: Iterable[str], mutant: Mutant | None = None) -> str:
    """Run test files on a mutant, or on the original, in a child: `killed`, `survived` or `overtime`."""
    pid = os.fork()
    if not pid:
        os.setsid()  # so that processes of the tests end with them
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        if mutant is not None:
            sys.meta_path.insert(0, MutantFinder(mutant))
        os._exit(int(pytest.main([*PYTEST, *files])))
    deadline = time.monotonic() + (LIMIT_S if mutant else 3 * LIMIT_S)
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "overtime"
        time.sleep(0.02)
    return "survived" if done[1] == 0 else "killed"


def equivalents() -> set[tuple[str, str]]:
    """Module and change of the mutants in `survivors.md`."""
    return set(re.findall(r"^\| `(\S+)` \| `(.*?)` \|", SURVIVORS.read_text(), re.MULTILINE))


@click.command()
@click.argument("modules", nargs=-1)
@click.option("--sample", default=150, show_default=True, help="Number of mutants; 0 runs all.")
@click.option("--seed", default=0, show_default=True)
@click.option("--goal", default=90.0, show_default=True, help="Least score in percent; below it the exit code is 1.")
def main(modules: tuple[str, ...], sample: int, seed: int, goal: float) -> None:
    """Print the share of mutants that the tests notice, those that only other tests notice, and survivors."""
    os.chdir(ROOT)
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    chosen, counts = sample_of(modules or MODULES, sample, seed), Counter[str]()
    if outcome(sorted({file for mutant in chosen for file in files_for(mutant.module)})) != "survived":
        sys.exit("the tests fail without a change")
    known, start = equivalents(), time.monotonic()
    for number, mutant in enumerate(chosen, 1):
        is_known = (mutant.module, mutant.change) in known
        result = "equivalent" if is_known else outcome(files_for(mutant.module), mutant)
        if result == "survived" and (others := files_beside(mutant.module)):
            print(f"unnoticed by its own tests: {mutant.module}:{mutant.line} {mutant.change}", flush=True)
            result = outcome(others, mutant)
        counts[result] += 1
        if result == "survived":
            print(f"SURVIVED {mutant.module}:{mutant.line} {mutant.change}", flush=True)
        if number % 10 == 0 or number == len(chosen):
            print(f"{number} of {len(chosen)} in {time.monotonic() - start:.0f} s: {dict(counts)}", flush=True)
    judged = len(chosen) - counts["equivalent"]
    score = 100 * (judged - counts["survived"]) / max(judged, 1)
    print(f"score: {score:.1f} % of {judged} mutants")
    sys.exit(score < goal)


if __name__ == "__main__":
    main()
