"""`dualflow` from a wheel in a new environment, outside the checkout; `test_workflow.py` runs the whole workflow."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tiny_study import write_config, write_samples

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("wheel")]

ROOT = Path(__file__).parents[2]
SOURCES = ("dualflow", "pipelines", "configs", "Snakefile", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def call(*command, folder):
    """Run a command without this checkout on its path, and return its output."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DUALFLOW"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The `dualflow` program of a new environment with its wheel and the libraries of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "./source", folder=folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    (wheel,) = (folder / "dist").glob("dualflow-*.whl")
    call(*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel), folder=folder)
    packages = call(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    # A line of a .pth file extends the path; .pth files below it, such as that of an editable install, are not read.
    (Path(packages) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    location = call(str(python), "-c", "import dualflow; print(dualflow.__file__)", folder=folder)
    assert location.startswith(packages)
    return folder / "venv/bin/dualflow"


def test_the_wheel_has_every_file_of_the_package(program):
    """Templates, tables, configurations and the workflow's files, not only modules."""
    (wheel,) = (program.parents[2] / "dist").glob("dualflow-*.whl")
    packaged = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT) for path in (ROOT / "dualflow").rglob("*") if path.is_file()}
    assert {str(file) for file in files if "__pycache__" not in file.parts} <= packaged
    assert {"Snakefile", "study.yaml"} <= {Path(name).name for name in packaged}


def test_a_packaged_configuration_is_found_by_name(program, tmp_path):
    """The default and a named configuration need no file in the current folder."""
    assert "train dualflow seed 0" in call(program, "run", "--dry-run", folder=tmp_path)
    shown = call(program, "run", "--config", "benchmark", "-n", folder=tmp_path)
    assert "train dualflow seed 2" in shown
    assert "_workflow" in call(program, "doctor", folder=tmp_path)


def test_the_workflow_runs(program, tmp_path):
    """Snakemake finds the packaged workflow, whose first step indexes a table of samples."""
    write_samples(tmp_path)
    write_config(tmp_path, {"study": {"name": "tiny", "samples": "samples.tsv"}})
    call(program, "run", "--config", "tiny.yaml", "--cores", "2", "--", "index", folder=tmp_path)
    assert (tmp_path / "results/tiny/index/pairs.tsv").is_file()
