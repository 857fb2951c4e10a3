"""Stored scores count only if the workflow would compute the same ones now."""

import json

import pytest
from comparison import LEARNT, SCANS, study_values, train_and_score, write_index

from dualflow.commit import commit_json
from dualflow.config import parse_config
from dualflow.evaluation.current_scores import CurrentScans, current_scores
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.models.store import load_card
from dualflow.revisions import REVISIONS

WATCHED = "sub-watched"
SPLITS = {LEARNT: "train", "sub-learnt2": "train", WATCHED: "validation", **dict.fromkeys(SCANS, "test")}


@pytest.fixture
def config(tmp_path):
    config = parse_config(study_values(tmp_path))
    train_and_score(config, "dualflow", 0, 10, splits=SPLITS)
    return config


def tables(config):
    return current_scores(config, CurrentScans.of(config), load_card(config.layout.model("dualflow", 0)))


def test_scores_of_the_present_study_are_current(config):
    """They need the same scans and options; resamples of the report change no score."""
    assert list(tables(config)["scans"]["scan"]) == list(SCANS)
    fewer = config.evaluate.model_copy(update={"bootstrap": 7})
    assert tables(config.model_copy(update={"evaluate": fewer})) is not None


@pytest.mark.parametrize(("section", "values"), [("evaluate", {"samples": 8}), ("convert", {"temperature": 0.5})])
def test_scores_of_other_options_are_not(config, section, values):
    """Scores of fewer samples or of another temperature do not stand beside others."""
    changed = getattr(config, section).model_copy(update=values)
    assert tables(config.model_copy(update={section: changed})) is None


@pytest.mark.parametrize("step", ["train", "evaluate"])
def test_scores_of_an_earlier_revision_are_not(config, step, monkeypatch):
    """The same weights and scans have other scores by today's code, or today's training other weights."""
    monkeypatch.setitem(REVISIONS, step, -1)
    assert tables(config) is None


def test_scores_of_a_training_without_a_revision_are_not(config):
    """Manifests of the first versions have none."""
    path = config.layout.manifest("train/dualflow_seed-0")
    content = json.loads(path.read_text())
    del content["revision"]
    commit_json(path, content)
    assert tables(config) is None


def test_scores_of_other_test_scans_are_not(config):
    """Another split has other test people."""
    write_index(config.layout, SPLITS | {SCANS[0]: "convert"})
    assert tables(config) is None


def test_scores_of_a_model_that_learnt_from_a_validation_scan_are_not(config):
    """The same scans, but two have changed places."""
    write_index(config.layout, SPLITS | {LEARNT: "validation", WATCHED: "train"})
    assert tables(config) is None


@pytest.mark.parametrize("key", [LEARNT, WATCHED, SCANS[0]])
def test_scores_of_people_of_another_age_are_not(config, key):
    """A corrected value is another condition, of the model that learns from it or of the prediction that is scored."""
    assert tables(config) is not None
    write_index(config.layout, SPLITS, {key: 90})
    assert tables(config) is None


def test_scores_of_a_model_of_other_data_are_not(config):
    """A training scan was preprocessed again since."""
    path = config.layout.scan_manifest(Scan.parse(LEARNT))
    write_manifest(path, step="preprocess", outputs={}, inputs={"source": "other"}, config={})
    assert tables(config) is None


def test_scores_of_a_test_scan_that_was_preprocessed_again_are_not(config):
    """They compare with an image that is no longer the measured one."""
    path = config.layout.scan_manifest(Scan.parse(SCANS[0]))
    write_manifest(path, step="preprocess", outputs={}, inputs={"target": "other"}, config={})
    assert tables(config) is None


def test_scores_of_an_unfinished_training_are_not(config):
    """Snakemake removes the manifest of a training that it repeats, while its old weights stay."""
    config.layout.manifest("train/dualflow_seed-0").unlink()
    assert tables(config) is None
