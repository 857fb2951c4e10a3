"""Names of the steps of a study, and their required inputs."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from dualflow.commands.steps import (
    closed_form_baselines,
    require_inputs,
    require_test_people,
    scoring_steps,
    step_names,
    with_manifests,
)
from dualflow.config import parse_config
from dualflow.errors import ConfigError, DataError


@pytest.fixture
def config(tmp_path):
    return parse_config(
        {
            "study": {"name": "x", "results": str(tmp_path)},
            "train": {"seeds": [3, 4]},
            "baselines": {"models": ["mean_image", "unet"]},
            "extra_models": {"wide": {"preset": "dualflow", "options": {"low_rank": 2}}},
        }
    )


def test_every_manifest_of_a_study_has_a_name(config):
    """Closed-form baselines have one training, gradient-trained models one per seed."""
    names = step_names(config)
    assert len(set(names)) == len(names)
    assert [name.removeprefix("train/") for name in names if name.startswith("train/")] == [
        "dualflow_seed-3", "dualflow_seed-4", "wide_seed-3", "wide_seed-4", "mean_image_seed-3", "unet_seed-3",
        "unet_seed-4",
    ]  # fmt: skip
    assert names[:3] == ["cohort/shard-0", "cohort/shard-1", "cohort"]
    assert names[-1] == "check"
    assert closed_form_baselines(config) == ["mean_image"]


def test_a_comparison_needs_only_scores(config):
    """Its flows are trained and scored, and so are the limits of a simulation; nothing is converted or reported."""
    names = scoring_steps(config, ["wide"])
    models = ["train/wide_seed-3", "train/wide_seed-4", "evaluate/wide_seed-3", "evaluate/wide_seed-4"]
    assert names[-5:] == [*models, "evaluate/ceilings"]
    assert scoring_steps(config.with_fields("study", bids=Path("data")), ["wide"])[-4:] == models
    assert "preprocess" in names
    assert not {"convert", "report", "evaluate/dualflow_seed-3"} & set(names)


def test_a_missing_step_is_named(config):
    """The error has the first missing step and the number of further ones."""
    with pytest.raises(DataError, match="preprocess-finish: steps preprocess/shard-0 and 1 more are not done"):
        require_inputs(config, "preprocess-finish")
    for step in ("preprocess/shard-0", "preprocess/shard-1"):
        path = config.layout.manifest(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    require_inputs(config, "preprocess-finish")
    with pytest.raises(DataError, match="lr-find: step preprocess is not done"):
        require_inputs(config, "lr-find")


def test_the_remedy_fits_what_is_missing(config, tmp_path):
    """A study that does not exist is a wrong name; draws come from a command of their own."""
    config.layout.manifest("preprocess").parent.mkdir(parents=True)
    with pytest.raises(DataError, match=r"step impute is not done .*; run `dualflow impute` first"):
        require_inputs(config, "analyse")
    elsewhere = config.with_fields("study", name="nosuch")
    with pytest.raises(DataError, match=r"nosuch; there is no such folder: check study.name and --config"):
        require_inputs(elsewhere, "edit")


def test_a_training_can_be_asked_for_by_its_step(config):
    """Snakemake knows it by the file that it makes; rules and other options stay as they are."""
    file = str(config.layout.manifest("train/wide_seed-3"))
    assert with_manifests(config, ["train/wide_seed-3", "qc", "--quiet"]) == [file, "qc", "--quiet"]
    assert with_manifests(config, ["train/other_seed-3"]) == ["train/other_seed-3"]


def test_a_study_without_test_people_is_refused_with_its_remedy(config):
    """Each way to choose test people is one; otherwise the error names the target that trains without scores."""
    for values in ({"test": 0.1}, {"test": 0, "test_subjects": ["1"]}, {"test": 0, "folds": 3}):
        require_test_people(parse_config({"study": {"name": "x"}, "split": values}))
    nobody = config.with_fields("split", test=0.0)
    with pytest.raises(ConfigError, match=r"split.test is 0, .*x/manifests/train/dualflow_seed-3.json"):
        require_test_people(nobody)


@pytest.mark.parametrize(
    ("rows", "folds", "is_refused"),
    [("split train validation", None, True), ("split train test", None, False),
     ("split train validation", 3, False), ("fold 0 1", None, False)],
)  # fmt: skip
def test_a_table_of_splits_names_test_people(config, tmp_path, rows, folds, is_refused):
    """Unless folds do; the index refuses a table without the column."""
    table, (column, *cells) = tmp_path / "splits.tsv", rows.split()
    table.write_text(f"subject\t{column}\n" + "".join(f"{label}\t{cell}\n" for label, cell in enumerate(cells)))
    split = config.split.model_copy(update={"file": table, "folds": folds})
    study = config.model_copy(update={"split": split})
    refused = pytest.raises(ConfigError, match=r"splits.tsv has no test, so nobody is left")
    with refused if is_refused else nullcontext():
        require_test_people(study)
