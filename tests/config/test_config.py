"""Defaults, paths, names and descriptions of the configuration, and the shipped files."""

import re
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from dualflow.baselines import BASELINES
from dualflow.commands.study_config import load_study_config
from dualflow.config import BaselineConfig, Config, Section, parse_config
from dualflow.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def sections() -> list[type[BaseModel]]:
    return [Config, *Section.__subclasses__()]


@pytest.fixture
def example_folder(tmp_path, monkeypatch):
    """Enter a folder with the datasets of the shipped configurations."""
    monkeypatch.chdir(tmp_path)
    for path in CONFIGS:
        if bids := yaml.safe_load(path.read_text())["study"].get("bids"):
            Path(bids).mkdir(parents=True)


def test_a_name_is_enough():
    """All other keys have defaults, and the name is that of the results folder."""
    config = parse_config({"study": {"name": "test"}})
    assert config.layout.root == Path("results/test")
    assert config.bids == config.layout.bids
    assert list(config.flows) == ["dualflow"]


def test_paths_are_relative_to_the_dataset(tmp_path):
    """The root is `study.bids`, or else the folder of the table of scans, or the embedded cohort."""
    table = tmp_path / "scans.tsv"
    table.touch()
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for paths, root in (
        ({"bids": dataset}, dataset), ({"samples": table}, tmp_path), ({"bids": dataset, "samples": table}, dataset),
    ):  # fmt: skip
        config = parse_config({"study": {"name": "a", **{key: str(path) for key, path in paths.items()}}})
        assert (config.bids, config.embedded) == (root, False)
    assert parse_config({"study": {"name": "a"}}).embedded


@pytest.mark.parametrize(
    ("key", "kind"),
    [("study.bids", "folder"), ("study.samples", "file"), ("study.masks", "folder"), ("split.file", "file"),
     ("study.exclusions", "file"), ("preprocess.reference_region", "file")],
)  # fmt: skip
def test_a_missing_file_or_folder_is_named(tmp_path, key, kind):
    """The error has the key, the path, the expected kind and the remedy."""
    missing, wrong_kind = tmp_path / "none.nii.gz", tmp_path / "wrong.nii.gz"
    wrong_kind.mkdir() if kind == "file" else wrong_kind.touch()
    for path, problem in ((missing, "does not exist"), (wrong_kind, f"is not a {kind}")):
        section, field = key.split(".")
        values = {"study": {"name": "a"}}
        values.setdefault(section, {})[field] = str(path)
        with pytest.raises(ConfigError) as caught:
            parse_config(values)
        assert f"{key} = {path}: {problem}, expected a {kind}; name " in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["study.results", "study.bids", "study.samples", "study.exclusions", "split.file", "preprocess.reference_region",
     "impute.meta_regions"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["r{a}.nii.gz", "r}.nii.gz"])
def test_paths_of_the_workflow_have_no_braces(tmp_path, key, name):
    """Snakemake takes them for wildcards in inputs and outputs, and failed in its own words."""
    path, values = tmp_path / name, {"study": {"name": "a"}}
    path.mkdir() if key in ("study.results", "study.bids") else path.touch()
    section, field = key.split(".")
    values.setdefault(section, {})[field] = str(path)
    with pytest.raises(ConfigError, match=re.escape(f"{key} = {path}: has a brace")) as caught:
        parse_config(values)
    assert "expected a path without { and }; rename" in str(caught.value)


def test_masks_and_artifacts_may_have_braces(tmp_path):
    """No rule of the workflow names them; nor do spaces and other characters matter."""
    folder = tmp_path / "m{a}"
    folder.mkdir()
    values = {"study": {"name": "a", "masks": str(folder), "results": str(tmp_path / "r é")}}
    assert parse_config(values | {"tracking": {"artifacts": str(folder)}}).study.masks == folder


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a b", "cannot name a folder"),
        ("unet", "name of another model"),
        ("dualflow", "name of another model"),
        ("oracle", "name of a limit"),
    ],
)
def test_model_names_are_unique_folder_names(name, problem):
    """Two models with the same name would share a folder."""
    with pytest.raises(ConfigError, match=f"extra_models: '{name}' .*{problem}"):
        parse_config({"study": {"name": "a"}, "extra_models": {name: {"preset": "c_glow"}}})


def test_every_baseline_can_be_chosen():
    """The configuration accepts the rows of BASELINES."""
    (names, _) = typing.get_args(BaselineConfig.model_fields["models"].annotation)
    assert typing.get_args(names) == tuple(BASELINES)


def test_no_more_samples_are_kept_than_are_drawn():
    """Conversion would write fewer files than were asked for."""
    with pytest.raises(ConfigError, match="keep_samples 9 is more than samples 8"):
        parse_config({"study": {"name": "a"}, "convert": {"samples": 8, "keep_samples": 9}})


def test_configuration_is_frozen():
    """Values cannot be changed after validation."""
    config = parse_config({"study": {"name": "a"}})
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 3


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_is_described(section):
    """Every key has a description that ends with a full stop."""
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"
        assert field.description.rstrip().endswith("."), f"{section.__name__}.{name}"


def test_the_template_lists_every_key_with_its_default(example_folder):
    """Only the section `study` of configs/study.yaml differs from the defaults."""
    path = Path(__file__).parents[2] / "configs" / "study.yaml"
    listed = yaml.safe_load(path.read_text())
    defaults = parse_config({"study": listed["study"]}).model_dump(mode="json")
    assert listed.keys() == defaults.keys()
    for section in listed.keys() - {"extra_models", "impute"}:
        assert listed[section].keys() == defaults[section].keys(), section
    parsed = parse_config(listed).model_dump(mode="json")  # `reference_region: null` is that of the tracer
    listed["preprocess"] |= {"reference_region": parsed["preprocess"]["reference_region"]}
    assert {name: listed[name] for name in listed if name != "study"} == {
        name: defaults[name] for name in defaults if name != "study"
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path, example_folder):
    """Every file in configs/ is valid if its dataset exists."""
    assert load_study_config(path).study.name


def test_levels_may_be_numbers():
    """Groups that are coded by numbers have reference levels too."""
    assert parse_config({"study": {"name": "x"}, "impute": {"references": {"sex": 1}}}).impute.references == {
        "sex": "1"
    }


def test_fields_of_a_section_are_replaced():
    """The other fields and sections stay."""
    config = parse_config({"study": {"name": "x"}, "train": {"steps": 7}})
    changed = config.with_fields("train", learning_rate=0.01, patience=None)
    assert (changed.train.learning_rate, changed.train.patience, changed.train.steps) == (0.01, None, 7)
    assert changed.model_copy(update={"train": config.train}) == config
