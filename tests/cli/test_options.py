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
        (
            Path("smith-hospital.yaml"),
            ("study.bids=SmithJohn1950", "study.name=mine", "study.results=MuellerAnna"),
            ["--config", "...", "--set", "study.bids=...", "--set", "study.name=mine", "--set", "study.results=..."],
        ),
        (Path("results/x/configs/0a1b2c3d4e5f.json"), (), ["--config", "..."]),
    ],
)
def test_a_command_is_stated_without_names_of_files(path, overrides, expected):
    """Except those of configurations that come with dualflow."""
    assert command_settings(path, overrides, default="compare") == expected


@pytest.mark.parametrize(
    ("override", "is_hidden"),
    [
        ("split.file=Doe.tsv", True),
        ("impute.meta_regions=Doe.tsv", True),
        ("preprocess.reference_region=Doe.nii", True),
        ("preprocess={reference_region: Doe.nii}", True),
        ("study={name: x, masks: Doe}", True),
        ("tracking.uri=postgresql://Doe:secret@host", True),
        ("tracking={uri: sqlite:///Doe.db}", True),
        ("cohort.subjects=12", False),
        ("extra_models.wide={preset: dualflow, options: {low_rank: 48}}", False),
        ("train.augment.flip=false", False),
        ("impute.analyses.ratio=suvr ~ a/b", False),
    ],
)
def test_values_that_may_identify_people_are_hidden(override, is_hidden):
    """Those of paths and of the store, whatever they contain, also as part of a section."""
    shown = command_settings(find_config("compare"), (override,), default="compare")
    assert shown == ["--set", f"{override.partition('=')[0]}=..." if is_hidden else override]


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_cores_are_all_or_a_number(value):
    """Without a core Snakemake would wait for ever, and hold the lock of the run."""
    with pytest.raises(click.BadParameter, match="not 'all' or a number of at least 1"):
        checked_cores(None, None, value)
    assert [checked_cores(None, None, usual) for usual in ("all", "2")] == ["all", "2"]
