"""Generated reference pages are complete and say what the code says."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.config import Config, parse_config
from dualflow.data import quality_metrics
from dualflow.evaluation import statistics
from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.study_metrics import STUDY_METRICS
from dualflow.flows.presets import PRESETS, preset
from dualflow.flows.spec import FlowSpec
from dualflow.inference import conversion_table
from dualflow.report import likelihood_tables

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "hooks"))
reference = pytest.importorskip("reference")


def test_every_command_and_option_is_described():
    """Each command has a heading, and each of its options a row with a description."""
    text = reference.commands()
    for name, command in main.commands.items():
        section = text.split(f"### dualflow {name}\n")[1].split("\n### ")[0]
        assert command.help.split("\n")[0].split(".")[0] in section
        for option in [option for option in command.params if option.param_type_name == "option"]:
            row = next(line for line in section.splitlines() if f"`{option.opts[-1]}`" in line)
            assert len(row.split("|")[3].strip()) > 5, row


def test_the_columns_of_all_tables_are_described():
    """Those that the code lists; scores have tables of their own."""
    page = (ROOT / "docs/reference/columns.md").read_text() + reference.conversion_figures()
    described = {name for row in page.splitlines() if row.startswith("|") for name in re.findall(r"`([^`]+)`", row)}
    names = {*conversion_table.COLUMNS, *statistics.SUMMARY, *statistics.DIFFERENCES, *likelihood_tables.BITS}
    names |= {*likelihood_tables.IMAGES, *likelihood_tables.ROUND_TRIPS}
    assert names - described <= {"metric", "mean", *METRICS}
    for name in quality_metrics.METRICS:
        assert any(column == name or column.endswith(f"_{name}") for column in described), name


def test_commands_keep_their_options(monkeypatch):
    """Writing the reference first does not change what the commands accept later in the same process."""
    monkeypatch.setattr(main, "_help_option", None, raising=False)  # click's cache
    reference.commands()
    assert CliRunner().invoke(main, ["-h"]).exit_code == 0


def test_every_key_is_described():
    """Each key of each section has a row with a description."""
    sections = {part.split("\n")[0]: part for part in reference.configuration().split("## ")}
    for name, section in Config.model_fields.items():
        model = reference.section_of(section.annotation)
        text = sections.get(name) or sections[f"{name}.NAME"]
        for key in model.model_fields:
            rows = [line for line in text.splitlines() if line.startswith((f"| `{key}`", f"| `{key}."))]
            assert rows, key
            assert all(len(row.rsplit(" | ", 1)[1].strip(" |")) > 5 for row in rows), key


def test_keys_have_the_names_that_a_configuration_takes():
    """A table of sections has one per name; an optional section has none."""
    text = reference.configuration()
    assert "\n## extra_models.NAME\n" in text
    assert "\n## impute\n" in text
    assert "| `training.NAME.steps` |" in text
    parse_config({"study": {"name": "x"}, "impute": {"draws": 5}, "baselines": {"training": {"unet": {"steps": 5}}}})


def test_every_flow_option_is_described():
    """Each field of FlowSpec has a row with a description."""
    rows = reference.flow_options().splitlines()
    for field in fields(FlowSpec):
        row = next(line for line in rows if line.startswith(f"| `{field.name}`"))
        assert len(row.rsplit(" | ", 1)[1].strip(" |")) > 5, row


@pytest.mark.parametrize("name", PRESETS)
def test_preset_yaml_is_the_preset(name):
    """The YAML on a preset's page builds that preset."""
    raw = yaml.safe_load(reference.preset(name).strip("`").removeprefix("yaml\n"))
    config = parse_config({"study": {"name": "page"}, **raw})
    assert preset(config.model.preset, **config.model.options) == PRESETS[name].spec


def test_exit_codes_name_every_error():
    """Each error class of a code stands beside its meaning."""
    text = reference.exit_codes()
    assert "`ConfigError`" in text
    assert "| 75 |" in text


def test_every_metric_has_a_row():
    """Metrics of scans and of studies are in their tables."""
    for text, rows in ((reference.metrics(), METRICS), (reference.study_metrics(), STUDY_METRICS)):
        assert all(f"| `{name}` | {row.label} |" in text for name, row in rows.items())
