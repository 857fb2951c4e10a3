"""The workflow's imputation is that of its configuration, also after `dualflow impute` with other options."""

import json

import pytest

from dualflow.commands import impute as module
from dualflow.commands.check import check
from dualflow.commands.imputation_plan import analysis_options, is_other_imputation, other_analyses
from dualflow.commands.impute import impute
from dualflow.config import parse_config
from dualflow.errors import DataError
from dualflow.imputation.formula import Formula
from dualflow.manifest import write_manifest
from tests.support.imputed_study import ImputedStudy


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A configuration whose table was drawn."""
    values = {"study": {"name": "t", "results": str(tmp_path)}, "impute": {"draws": 5}}
    config = parse_config(values)
    ImputedStudy.make().install(monkeypatch, module, config)
    impute(config)
    return values


@pytest.mark.parametrize("change", [{}, {"analyses": {"main": "suvr ~ age"}}])
def test_a_further_analysis_needs_no_other_draws(values, change):
    assert not is_other_imputation(parse_config(values | {"impute": {"draws": 5, **change}}))


@pytest.mark.parametrize(
    "change", [{"impute": {"draws": 6}}, {"impute": {"draws": 5}, "model": {"preset": "dual_glow"}}]
)
def test_another_table_fails_the_last_step(values, change):
    """The report would show its analyses as those of the configuration."""
    config = parse_config(values | change)
    assert is_other_imputation(config)
    with pytest.raises(DataError, match=r"was drawn by another model or with other options .* run `dualflow impute`"):
        check(config)


def test_meta_regions_count_by_their_content(values, tmp_path):
    """A table that was only moved changes nothing."""
    table = tmp_path / "regions.tsv"
    table.write_text("meta_region\tregion\nlobe\tcuneus\n")
    values = values | {"impute": {"draws": 5, "meta_regions": str(table)}}
    assert is_other_imputation(parse_config(values))
    impute(parse_config(values))
    moved = table.rename(tmp_path / "moved.tsv")
    assert not is_other_imputation(parse_config(values | {"impute": {"draws": 5, "meta_regions": str(moved)}}))
    moved.write_text("meta_region\tregion\nlobe\tCaudate\n")
    assert is_other_imputation(parse_config(values | {"impute": {"draws": 5, "meta_regions": str(moved)}}))


def test_a_table_of_an_earlier_build_counts_by_what_it_recorded(values):
    """It listed the analyses, and did not know the meta-regions."""
    config = parse_config(values)
    path = config.layout.manifest("impute")
    manifest = json.loads(path.read_text())
    del manifest["config"]["impute"]["meta_regions"]
    manifest["config"]["impute"]["analyses"] = {"old": "suvr ~ age"}
    path.write_text(json.dumps(manifest))
    assert not is_other_imputation(config)


@pytest.mark.parametrize(
    ("made", "references", "is_other"),
    [("age + group", {}, False), ("suvr ~ age", {}, True), ("suvr ~ age + group", {"group": "patient"}, True)],
)
def test_another_analysis_fails_the_last_step(values, made, references, is_other):
    """`dualflow analyse --set` replaces an analysis that the report shows as that of the configuration."""
    config = parse_config(values | {"impute": {"draws": 5, "analyses": {"main": "suvr ~ age + group"}}})
    assert not other_analyses(config), "not made yet"
    options = analysis_options(Formula.parse(made, references))
    write_manifest(config.layout.manifest("analyse/main"), step="analyse", outputs={}, inputs={}, config=options)
    assert other_analyses(config) == ["main"] * is_other
    with pytest.raises(DataError, match=r"analyses/main: was made with another" if is_other else "quarantine.tsv"):
        check(config)


def test_a_study_without_an_imputation_has_no_other(values):
    config = parse_config({"study": values["study"]})
    assert not is_other_imputation(config)
    assert not other_analyses(config)
