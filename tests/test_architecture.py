import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dualflow"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"cli"},
    {"commands"},
    {"report"},
    {"evaluation"},
    {"inference"},
    {"training"},
    {"models", "tracking"},
    {"data", "baselines"},
    {"flows"},
    {"imaging", "cohort"},
    {"config", "modalities", "layout", "manifest", "commit", "progress", "workers"},
    {"errors", "process"},
]
SIDEWAYS = {
    "cohort": {"imaging"},
    "layout": {"modalities"},
    "manifest": {"commit"},
    "config": {"layout", "modalities", "commit"},
}
ONLY_IN = {
    "mlflow": ["tracking/"],
    "dask": ["workers.py"],
    "distributed": ["workers.py"],
    "click": ["cli/"],
    "SimpleITK": ["imaging/", "cohort/"],
    "monai": ["imaging/", "data/", "baselines/", "evaluation/"],
}
# The commit function itself; the runner, whose log and lock are no results.
WRITERS = {"commit.py", "commands/run.py"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle",
}  # fmt: skip
HEAVY = {"torch", "monai", "mlflow", "SimpleITK", "nibabel", "pandas", "numpy", "matplotlib", "nilearn", "dask"}


def room(name: str) -> str:
    """`flows` for `flows/model.py` or `dualflow.flows.model`; '' for the package itself."""
    return name.removeprefix("dualflow").strip("./").removesuffix(".py").replace("/", ".").split(".")[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every import as (module, imported name or '')."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def rooms_used(tree: ast.AST) -> set[str]:
    """The rooms of dualflow a module imports from."""
    named = [f"{module}.{name}" if module == "dualflow" else module for module, name in imports(tree)]
    used = {room(name) for name in named if name.split(".")[0] == "dualflow"}
    return used - {"", "__version__"}


def allowed(name: str) -> set[str]:
    """What a room may import: itself, its sideways edges, all layers below."""
    place = next((level for level, names in enumerate(LAYERS) if name in names), None)
    assert place is not None, f"dualflow/{name} has no place in LAYERS"
    if name == "flows":
        return {"flows", "errors"}
    return {name, *SIDEWAYS.get(name, ()), *(lower for names in LAYERS[place + 1 :] for lower in names)}


def breaches(tree: ast.AST, *, writes: bool) -> list[str]:
    """Calls that load or run untrusted content or, with `writes`, write a file outside a `committing` block."""
    nodes = list(ast.walk(tree))
    blocks = [node for node in nodes if isinstance(node, ast.With) and opens_commit(node)]
    sheltered = {id(inner) for block in blocks for inner in ast.walk(block)}
    found = [f"import {module}" for module, _ in imports(tree) if module.split(".")[0] in UNSAFE_MODULES]
    found += [f"from {module} import {name}" for module, name in imports(tree) if f"{module}.{name}" in UNSAFE_CALLS]
    for call in nodes:
        if not isinstance(call, ast.Call):
            continue
        name, where = ast.unparse(call.func), f" at line {call.lineno}"
        if name in UNSAFE_CALLS or name.endswith(".to_pickle"):
            found.append(name + where)
        if any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in call.keywords):
            found.append("shell" + where)
        if writes and id(call) not in sheltered and is_write(call, name.split(".")[-1]):
            found.append(f"{name} outside committing" + where)
    return found


def opens_commit(block: ast.With) -> bool:
    """Whether a with statement enters `committing`."""
    return any("committing(" in ast.unparse(item.context_expr) for item in block.items)


def is_write(call: ast.Call, method: str) -> bool:
    """Whether a call is `write_text`, `write_bytes`, or `open` with a mode that writes."""
    if method in {"write_text", "write_bytes"}:
        return True
    # the mode is the first argument of path.open, the second of open(path) and gzip.open(path)
    function = ast.unparse(call.func)
    place = 1 if function in {"open", "io.open", "gzip.open", "bz2.open", "lzma.open"} else 0
    modes = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    return method == "open" and any(set(ast.unparse(mode)) & set("wax+") for mode in modes)


@pytest.fixture(params=FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def module(request) -> tuple[str, ast.AST]:
    file: Path = request.param
    return file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text())


def test_imports_point_one_way(module):
    """A room imports only from the layers below it and over the few sideways edges."""
    path, tree = module
    if path != "__init__.py":
        wrong = rooms_used(tree) - allowed(room(path))
        assert not wrong, f"{path} may not import from {wrong}"


def test_each_service_has_one_home(module):
    """MLflow, dask, click and the image libraries are imported in their own places only."""
    path, tree = module
    for library in {module.split(".")[0] for module, _ in imports(tree)} & set(ONLY_IN):
        assert any(path.startswith(home) for home in ONLY_IN[library]), f"{path} may not import {library}"


def test_flows_need_torch_alone(module):
    """The flow library stands on torch and the standard library, without configuration, files or arrays of others."""
    path, tree = module
    if room(path) == "flows":
        used = {module.split(".")[0] for module, _ in imports(tree)}
        assert used <= {"torch", "dualflow", *sys.stdlib_module_names}


def test_nothing_is_executed_and_writes_are_committed(module):
    """No module unpickles, evaluates or shells out, and files are written through dualflow.commit."""
    path, tree = module
    assert breaches(tree, writes=path not in WRITERS) == []


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
def test_the_walk_sees_what_it_forbids(code):
    """Each forbidden construct is found, so that a clean result means something."""
    assert breaches(ast.parse(code), writes=True)


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
def test_the_walk_raises_no_false_alarm(code):
    """What is allowed is not reported."""
    assert breaches(ast.parse(code), writes=True) == []


def test_help_loads_nothing_heavy():
    """`dualflow --help` answers without importing any numerical or imaging library."""
    code = "import sys, dualflow.cli\ntry: dualflow.cli.main()\nfinally: print('LOADED', *sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent
    )
    assert "Usage" in run.stdout, run.stderr
    loaded = set(run.stdout.rpartition("LOADED")[2].split())
    assert not loaded & HEAVY
