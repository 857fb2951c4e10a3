"""The commit of the code is recorded only for a checkout of dualflow."""

import subprocess

import pytest

from dualflow import __version__
from dualflow.tracking.source_version import COMMIT, COMMIT_VARIABLE, source_version


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No commit is given, as outside a container."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)


def test_only_a_checkout_has_a_commit(tmp_path):
    """An untracked package in another project's checkout, such as in its .venv, has none."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    assert source_version(package) == {"dualflow.version": __version__}
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another project")
    assert source_version.__wrapped__(package) == {"dualflow.version": __version__}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "the package")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert source_version.__wrapped__(package)["mlflow.source.git.commit"] == commit


def test_an_installed_package_has_the_commit_of_its_image(tmp_path, monkeypatch):
    """A container has no history; a checkout knows better, and an empty argument of its build is none."""
    (tmp_path / "__init__.py").touch()
    monkeypatch.setenv(COMMIT_VARIABLE, "")
    assert source_version.__wrapped__(tmp_path) == {"dualflow.version": __version__}
    monkeypatch.setenv(COMMIT_VARIABLE, "abc")
    assert source_version.__wrapped__(tmp_path) == {"dualflow.version": __version__, COMMIT: "abc"}
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "the package")
    assert source_version.__wrapped__(tmp_path)[COMMIT] == git(tmp_path, "rev-parse", "HEAD")


def test_changed_code_is_told_from_its_commit(tmp_path):
    """A changed or new module counts, and a change elsewhere in the checkout does not."""
    package = tmp_path / "package"
    package.mkdir()
    for path in (package / "__init__.py", tmp_path / "README"):
        path.touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "the package")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "README").write_text("changed")
    assert source_version.__wrapped__(package)[COMMIT] == commit
    (package / "new.py").touch()
    assert source_version.__wrapped__(package)[COMMIT] == f"{commit}-dirty"
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("changed")
    assert source_version.__wrapped__(package)[COMMIT] == f"{commit}-dirty"
