"""The options of a command, as a table states them."""

from pathlib import Path

import click
import pytest

from dualflow.cli.options import checked_cores, command_settings
from dualflow.commands.workflow_files import find_config


@pytest.mark.parametrize(
    ("path", "overrides", "expected"),
    [
        (find_config("compare"), (), []),
        (find_config("presets"), ("train.steps=9",), ["--config", "presets", "--set", "train.steps=9"]),
        (
            Path("home/jane/presets.yaml"),
            ("study.bids=/home/jane",),
            ["--config", "presets.yaml", "--set", "study.bids=..."],
        ),
        (Path("results/x/configs/0a1b2c3d4e5f.json"), (), []),
    ],
)
def test_a_command_is_stated_without_folders(path, overrides, expected):
    """Only a configuration that comes with dualflow has a bare name."""
    assert command_settings(path, overrides, default="compare") == expected


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_cores_are_all_or_a_number(value):
    """Without a core Snakemake would wait for ever, and hold the lock of the run."""
    with pytest.raises(click.BadParameter, match="not 'all' or a number of at least 1"):
        checked_cores(None, None, value)
    assert [checked_cores(None, None, usual) for usual in ("all", "2")] == ["all", "2"]
