"""An analysis of imputed regions: its table, figures and runs, and what it refuses."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from dualflow.commands import analyse as module
from dualflow.commands import impute as impute_module
from dualflow.commands.analyse import analyse
from dualflow.commands.impute import impute
from dualflow.config import parse_config
from dualflow.data.tsv import read_typed_table
from dualflow.errors import ConfigError, DataError
from dualflow.imputation.group_models import METHODS, MULTIPLE, RUBIN, SINGLE
from dualflow.tracking.tracked_run import tracked
from tests.support.imputed_study import ImputedStudy


@contextmanager
def without_file(path):
    """Put a file away until the block ends."""
    content = path.read_bytes()
    path.unlink()
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with imputed regions."""
    folder = tmp_path_factory.mktemp("study")
    config = parse_config(
        {
            "study": {"name": "t", "results": str(folder)},
            "impute": {"draws": 10, "analyses": {"main": "suvr ~ age + group"}},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")},
        }
    )
    study = ImputedStudy.make()
    with pytest.MonkeyPatch.context() as patch:
        study.install(patch, impute_module, config)
        impute(config)
    return study, config


@pytest.fixture
def config(study, monkeypatch):
    made, config = study
    monkeypatch.setattr(module, "region_map", lambda _: made.regions)
    monkeypatch.setattr(module, "write_brain_map", lambda path, *_: path.write_bytes(b"png"))
    monkeypatch.setattr(module, "tracked", lambda *_: _Silent())
    return config


class _Silent:
    """A run that records nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __getattr__(self, _):
        return lambda *_, **__: None


def test_every_region_term_and_method_has_a_row(config, capsys):
    analyse(config, name="main")
    folder = config.layout.analysis("main")
    table = read_typed_table(folder / "regions.tsv")
    assert set(table["method"]) == set(METHODS)
    assert set(table["term"]) == {"age", "group=patient"}
    assert (table["scans"].max(), table["measured"].max()) == (60, 30)
    assert (folder / "forest.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "analysis.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "60 scans, 30 of them with a measured target." in text
    row = table[(table["method"] == MULTIPLE) & (table["term"] == "age")].nsmallest(1, "p").iloc[0]
    assert f"{row['estimate']:.3g} ({row['low']:.3g} to {row['high']:.3g})" in text


def test_intervals_are_wider_than_those_of_single_imputation(config):
    """The source tells much of the target here, so the draws are worth more than complete cases."""
    analyse(config, name="main")
    table = read_typed_table(config.layout.analysis("main") / "regions.tsv")
    rubin, multiple, single = (
        table[table["method"] == method]["se"].to_numpy() for method in (RUBIN, MULTIPLE, SINGLE)
    )
    assert (rubin > single).mean() > 0.9
    assert multiple.mean() > single.mean()
    assert np.isfinite(table.loc[table["method"] == MULTIPLE, "gain"]).all()


def test_the_text_says_which_outcomes_it_shows(config, monkeypatch):
    """Of many outcomes those with the smallest p, and all of few without a word."""
    texts = []
    for shown in (2, 100):
        monkeypatch.setattr(module, "SHOWN", shown)
        analyse(config, name="main")
        texts.append((config.layout.analysis("main") / "analysis.md").read_text())
    assert "below 5 %. The 2 with the smallest p are:\n" in texts[0]
    assert "smallest p" not in texts[1]


def test_outcomes_of_several_regions_are_analysed_too(config):
    analyse(config, name="more", formula="suvr ~ age", asymmetries=True, ratios=["ctx-lh-cuneus/Left-Caudate"])
    regions = set(read_typed_table(config.layout.analysis("more") / "regions.tsv")["region"])
    assert {"ctx-cuneus asymmetry", "Caudate asymmetry", "ctx-lh-cuneus/Left-Caudate"} < regions


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "x", "formula": "suvr ~ age * group"}, "not among the terms of the imputation"),
        ({"name": "x", "formula": "suvr ~ split"}, "not among the terms of the imputation"),
        ({"name": "x", "formula": "suvr ~ weight"}, "no column weight"),
        ({"name": "x", "formula": "suvr ~ 1"}, "names no column"),
        ({"name": "../x", "formula": "suvr ~ age"}, "cannot name a folder"),
        ({"name": "main", "formula": "suvr ~ age"}, "is one of the configuration"),
        ({"name": "none"}, "no analysis 'none' in impute.analyses"),
        ({"name": "x", "formula": "suvr ~ group", "references": ["group:control"]}, "not of the form COLUMN=LEVEL"),
        ({"name": "x", "formula": "suvr ~ age", "ratios": ["a/b"]}, "no region named 'a'"),
    ],
)
def test_what_would_mislead_is_refused(config, arguments, words):
    with pytest.raises(ConfigError) as caught:
        analyse(config, **arguments)
    assert words in str(caught.value)


def test_without_an_imputation_the_remedy_is_named(config, tmp_path):
    empty = config.with_fields("study", results=tmp_path)
    with pytest.raises(DataError, match="run `dualflow impute`"):
        analyse(empty, name="main")


def test_draws_of_another_index_are_refused(config):
    """Ages that were corrected since would meet values that were drawn from the wrong ones."""
    path = config.layout.pairs
    content = path.read_text()
    path.write_text(content.replace("patient", "control", 1))
    try:
        with pytest.raises(DataError, match=r"pairs.tsv changed since .*; run `dualflow impute` again"):
            analyse(config, name="main")
    finally:
        path.write_text(content)


def test_draws_of_other_weights_are_refused(config):
    """The model was trained again after the imputation."""
    path = config.layout.model(config.model.preset, 0) / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"other weights")
    try:
        with pytest.raises(DataError, match=r"model.safetensors changed since .*; run `dualflow impute` again"):
            analyse(config, name="main")
    finally:
        path.unlink()


def test_a_sorted_table_is_refused(config):
    """Values are read by position, and a spreadsheet may have sorted them."""
    path = config.layout.imputed_regions
    before = path.read_text()
    header, *rows = before.splitlines()
    path.write_text("\n".join([header, *sorted(rows, reverse=True)]) + "\n")
    try:
        with pytest.raises(DataError, match=r"regions.tsv changed since .*; run `dualflow impute` again"):
            analyse(config, name="main")
    finally:
        path.write_text(before)


def test_an_interrupted_imputation_is_not_analysed(config):
    """Its table may belong to other replicates and volumes."""
    with (
        without_file(config.layout.manifest("impute")),
        pytest.raises(DataError, match="was not finished; run `dualflow impute` again"),
    ):
        analyse(config, name="main")


def test_pictures_of_an_earlier_formula_are_removed(config):
    analyse(config, name="more", formula="suvr ~ age + group")
    folder = config.layout.analysis("more")
    assert {path.name for path in folder.glob("brain_*")} == {"brain_age.png", "brain_group-patient.png"}
    analyse(config, name="more", formula="suvr ~ age")
    assert {path.name for path in folder.glob("brain_*")} == {"brain_age.png"}


def test_lost_replicates_are_an_error(config):
    """Without them the intervals would change."""
    with (
        without_file(config.layout.imputation_replicates),
        pytest.raises(DataError, match="missing; run `dualflow impute` again"),
    ):
        analyse(config, name="main")


def test_a_ratio_that_is_given_twice_is_one_outcome(config):
    analyse(config, name="twice", formula="suvr ~ age", ratios=["ctx-lh-cuneus/Left-Caudate"] * 2)
    table = read_typed_table(config.layout.analysis("twice") / "regions.tsv")
    assert (table["region"] == "ctx-lh-cuneus/Left-Caudate").sum() == len(METHODS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:For backward compatibility:DeprecationWarning")  # MLflow's code for tables
def test_an_analysis_with_other_options_does_not_continue_a_failed_run(config, monkeypatch):
    """Its run has the formula and the terms of this analysis alone; a repetition continues the run that failed."""

    def fail(*_, **__):
        raise OSError("full")

    monkeypatch.setattr(module, "tracked", tracked)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", fail)
        with pytest.raises(OSError, match="full"):
            analyse(config, name="tried", formula="suvr ~ group + age")
    analyse(config, name="tried", formula="suvr ~ age")
    client = MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name(config.study.name).experiment_id

    def runs():
        tried = client.search_runs([experiment], "tags.analysis = 'tried'")
        return {run.data.params["formula"]: run.info.status for run in tried}

    assert runs() == {"suvr ~ group + age": "FAILED", "suvr ~ age": "FINISHED"}
    finished = client.search_runs([experiment], "tags.analysis = 'tried' and attributes.status = 'FINISHED'")[0]
    assert {name.partition("/")[0] for name in finished.data.metrics} == {"age"}
    table = client.download_artifacts(finished.info.run_id, "tried.json")
    assert "patient" not in Path(table).read_text()
    analyse(config, name="tried", formula="suvr ~ group + age")
    assert runs() == {"suvr ~ group + age": "FINISHED", "suvr ~ age": "FINISHED"}
