"""Rules of the package as a whole: layers, libraries, safety, files and names."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "dualflow"
FILES = sorted(PACKAGE.rglob("*.py"))

# From top to bottom: a package imports from the layers below its own.
LAYERS = [
    {"cli"},
    {"commands"},
    {"report"},
    {"imputation"},
    {"evaluation"},
    {"inference"},
    {"training"},
    {"models", "tracking"},
    {"data", "baselines"},
    {"flows"},
    {"imaging", "cohort"},
    {"config", "modalities", "layout", "manifest", "commit", "progress", "workers"},
    {"errors", "process", "lifetime", "temporaries", "digests", "arrays", "revisions"},
]
# Imports within a layer.
SIDEWAYS = {
    "cohort": {"imaging"},
    "lifetime": {"errors"},
    "temporaries": {"lifetime"},
    "layout": {"modalities"},
    "manifest": {"commit", "layout"},
    "workers": {"config"},
    "config": {"layout", "modalities", "commit"},
}
# Library -> the only places that import it.
ONLY_IN = {
    "mlflow": ["tracking/"],
    "dask": ["workers/"],
    "distributed": ["workers/"],
    "dask_jobqueue": ["workers/"],
    "click": ["cli/"],
    "SimpleITK": ["imaging/", "cohort/"],
    "monai": ["imaging/", "data/", "baselines/", "evaluation/"],
}
# The commit function itself, and the runner: its log and locks are not results.
WRITERS = {"commit.py", "lifetime.py", "commands/run.py", "commands/run_lock.py"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle",
}  # fmt: skip
HEAVY = {"torch", "monai", "mlflow", "SimpleITK", "nibabel", "pandas", "numpy", "matplotlib", "nilearn", "dask"}

MAX_LINES = 400
# These names say nothing about the value.
EMPTY_NAMES = {"found", "own", "there", "told", "said"}
# Folders of tests that cover several modules.
UNMIRRORED = {"benchmarks", "contracts", "docs", "fuzz", "mutation", "support", "workflow"}


def package_of(name: str) -> str:
    """Package or top-level module: `flows` for `flows/model.py` or `dualflow.flows.model`, '' for dualflow itself."""
    return name.removeprefix("dualflow").strip("./").removesuffix(".py").replace("/", ".").split(".")[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every import as (module, imported name or '')."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def packages_used(tree: ast.AST) -> set[str]:
    """The packages of dualflow that a module imports from."""
    names = [f"{module}.{name}" if module == "dualflow" else module for module, name in imports(tree)]
    used = {package_of(name) for name in names if name.split(".")[0] == "dualflow"}
    return used - {"", "__version__"}


def allowed(package: str) -> set[str]:
    """The packages that a package may import from: itself, its sideways edges, and the layers below."""
    level = next((level for level, packages in enumerate(LAYERS) if package in packages), None)
    assert level is not None, f"dualflow/{package} has no layer in LAYERS"
    if package == "flows":
        return {"flows", "errors"}
    return {package, *SIDEWAYS.get(package, ()), *(lower for packages in LAYERS[level + 1 :] for lower in packages)}


def violations(tree: ast.AST, *, writes: bool) -> list[str]:
    """Calls that load or run untrusted content or, with `writes`, write a file outside a `committing` block."""
    nodes = list(ast.walk(tree))
    blocks = [node for node in nodes if isinstance(node, ast.With) and opens_commit(node)]
    committed = {id(inner) for block in blocks for inner in ast.walk(block)}
    result = [f"import {module}" for module, _ in imports(tree) if module.split(".")[0] in UNSAFE_MODULES]
    result += [f"from {module} import {name}" for module, name in imports(tree) if f"{module}.{name}" in UNSAFE_CALLS]
    for call in nodes:
        if not isinstance(call, ast.Call):
            continue
        name, where = ast.unparse(call.func), f" at line {call.lineno}"
        if name in UNSAFE_CALLS or name.endswith(".to_pickle"):
            result.append(name + where)
        if any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in call.keywords):
            result.append("shell" + where)
        if writes and id(call) not in committed and is_write(call, name.split(".")[-1]):
            result.append(f"{name} outside committing" + where)
    return result


def opens_commit(block: ast.With) -> bool:
    """Whether a with statement enters `committing`."""
    return any("committing(" in ast.unparse(item.context_expr) for item in block.items)


def is_write(call: ast.Call, method: str) -> bool:
    """Whether a call is `write_text`, `write_bytes`, or `open` with a mode that writes."""
    if method in {"write_text", "write_bytes"}:
        return True
    # The mode is the first argument of path.open, and the second of open(path) and gzip.open(path).
    function = ast.unparse(call.func)
    position = 1 if function in {"open", "io.open", "gzip.open", "bz2.open", "lzma.open"} else 0
    modes = [*call.args[position : position + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    return method == "open" and any(set(ast.unparse(mode)) & set("wax+") for mode in modes)


def defined_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every variable, argument, function and class that a module defines, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def is_mirrored(test: Path) -> bool:
    """Whether a test file is named after a module or package of dualflow, or lies in a folder of UNMIRRORED."""
    path = test.relative_to(TESTS)
    module = PACKAGE / path.parent / path.name.removeprefix("test_")
    return path.parts[0] in UNMIRRORED or module.is_file() or module.with_suffix("").is_dir()


@pytest.fixture(params=FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def module(request) -> tuple[str, ast.AST]:
    file: Path = request.param
    return file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text())


def test_imports_point_one_way(module):
    """A package imports only from the layers below it, and over the few sideways edges."""
    path, tree = module
    if path != "__init__.py":
        wrong = packages_used(tree) - allowed(package_of(path))
        assert not wrong, f"{path} may not import from {wrong}"


def test_each_library_has_its_place(module):
    """MLflow, dask, click and the image libraries are imported in their own places only."""
    path, tree = module
    for library in {module.split(".")[0] for module, _ in imports(tree)} & set(ONLY_IN):
        assert any(path.startswith(place) for place in ONLY_IN[library]), f"{path} may not import {library}"


def test_flows_need_torch_alone(module):
    """The flow library imports torch and the standard library only."""
    path, tree = module
    if package_of(path) == "flows":
        used = {module.split(".")[0] for module, _ in imports(tree)}
        assert used <= {"torch", "dualflow", *sys.stdlib_module_names}


def test_no_untrusted_code_runs_and_writes_are_committed(module):
    """No module unpickles, evaluates or shells out, and files are written through dualflow.commit."""
    path, tree = module
    assert violations(tree, writes=path not in WRITERS) == []


def test_modules_are_short(module):
    """Long modules are split."""
    path, _ = module
    assert len((PACKAGE / path).read_text().splitlines()) <= MAX_LINES


def test_names_say_what_they_hold(module):
    """No variable, argument, function or class has an empty name such as `found`."""
    _, tree = module
    assert [f"{name} at line {line}" for name, line in defined_names(tree) if name in EMPTY_NAMES] == []


def test_file_names_differ_between_packages():
    """A file name identifies a module; a command may be named after the module that it calls."""
    names = [file.name for file in FILES if file.name != "__init__.py" and file.parent.name != "commands"]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_tests_mirror_modules():
    """tests/data/test_split.py tests dualflow/data/split.py; tests of several modules lie in their own folders."""
    assert [str(test.relative_to(TESTS)) for test in TESTS.rglob("test_*.py") if not is_mirrored(test)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path)",
        "yaml.load(text)",
        "subprocess.run(line, shell=True)",
        "path.write_text('x')",
        "open(path, 'wb')",
        "path.open('a')",
        "gzip.open(path, mode='wt')",
    ],
)
def test_violations_are_detected(code):
    """Each forbidden construct is reported, so that a clean result means something."""
    assert violations(ast.parse(code), writes=True)


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "yaml.safe_load(text)",
        "open('war')",
        "path.open('rb')",
        "with committing(path) as temp:\n    temp.write_text('x')",
    ],
)
def test_valid_code_is_not_reported(code):
    """Allowed constructs are no violations."""
    assert violations(ast.parse(code), writes=True) == []


def test_help_loads_nothing_heavy():
    """`dualflow --help` answers without importing any numerical or imaging library."""
    code = "import sys, dualflow.cli\ntry: dualflow.cli.main()\nfinally: print('LOADED', *sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=600, cwd=PACKAGE.parent
    )
    assert "Usage" in run.stdout, run.stderr
    loaded = set(run.stdout.rpartition("LOADED")[2].split())
    assert not loaded & HEAVY
