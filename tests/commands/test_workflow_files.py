"""Location of the workflow's files in a checkout and in a wheel."""

from pathlib import Path

import pytest

from dualflow.commands import workflow_files
from dualflow.commands.workflow_files import find_config, packaged_configs, workflow_root
from dualflow.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_a_checkout_uses_its_own_files():
    """The Snakefile is in the folder above the package."""
    assert workflow_root() == ROOT
    assert {"quickstart", "benchmark", "study"} <= set(packaged_configs())


def test_a_wheel_uses_the_copy_in_the_package(tmp_path, monkeypatch):
    """The files are in the folder `_workflow` of the package; it is an error if it is missing."""
    package = tmp_path / "dualflow"
    monkeypatch.setattr(workflow_files, "PACKAGE", package)
    with pytest.raises(ConfigError, match="has no workflow files; install dualflow again"):
        workflow_root()
    (package / "_workflow/pipelines").mkdir(parents=True)
    (package / "_workflow/Snakefile").touch()
    assert workflow_root() == package / "_workflow"


def test_a_configuration_is_a_file_or_a_bare_name(tmp_path, monkeypatch):
    """A file precedes a packaged name, and the error for an unknown name lists the choices."""
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == ROOT / "configs/quickstart.yaml"
    assert find_config("gone.yaml") == Path("gone.yaml")
    Path("quickstart").touch()
    assert find_config("quickstart") == Path("quickstart")
    choices = "name a YAML file, or one of: ablations, benchmark, "
    with pytest.raises(ConfigError, match=f"no configuration 'nope'; {choices}"):
        find_config("nope")
