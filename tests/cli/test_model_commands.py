"""The commands that use a trained model: folders on their command lines."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.inference import conversion


@pytest.mark.parametrize("option", ["--out=~/out", "--out=/data/out"])
def test_a_tilde_is_the_home_folder(monkeypatch, option):
    """A shell leaves it as it is after `=`, and a folder of that name would be made."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(conversion, "plan_conversion", lambda _, model, out, *__, **___: f"{model} {out}")
    done = CliRunner().invoke(main, ["convert", "t1.nii.gz", "--model=~/fdg", option, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.split() == ["/home/me/fdg", str(Path(option.removeprefix("--out=")).expanduser())]
