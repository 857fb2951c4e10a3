"""The section on group analyses shows the pooled effects of the configured analyses, and nothing without them."""

import numpy as np
import pandas as pd
import pytest

from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.data.tsv import table_text
from dualflow.imaging.regions import RegionMap
from dualflow.imputation.group_models import ANALYSIS_TABLE, analyse_regions
from dualflow.report import analysis_section as module
from dualflow.report.analysis_section import analysis_figures, analysis_tables
from tests.support.imputed_study import REGIONS


def write_analysis(config, values, observed, design):
    """Write the table of completed values."""
    table = analyse_regions(values, observed, design, [str(index) for index in range(40)], [*REGIONS, "AD signature"])
    commit_text(config.layout.analysis("ageing") / ANALYSIS_TABLE, table_text(table))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A study with one analysis, whose age effect is in the first region alone."""
    config = parse_config(
        {"study": {"name": "t", "results": str(tmp_path)}, "impute": {"analyses": {"ageing": "suvr ~ age + sex"}}}
    )
    rng = np.random.default_rng(0)
    design = pd.DataFrame({"Intercept": 1.0, "age": rng.normal(size=40), "sex=M": np.arange(40) % 2})
    values = np.repeat(rng.normal(size=(40, 5))[None], 10, axis=0)
    values[:, :, 0] += 3 * design["age"].to_numpy()
    observed = np.arange(40) < 20
    values[:, ~observed] += 0.3 * rng.normal(size=(10, 20, 5))
    write_analysis(config, values, observed, design)
    monkeypatch.setattr(module, "region_map", lambda _: RegionMap(np.zeros((1, 1, 1), int), REGIONS, (4.0,) * 3))
    return config


def test_the_table_starts_with_the_clearest_effect(config):
    (table,) = analysis_tables(config)
    first = table.frame.iloc[0]
    assert (first["Term"], first["Outcome"]) == ("age", REGIONS[0])
    assert set(table.frame["Term"]) == {"age", "sex=M"}
    assert table.caption.startswith(
        "ageing: suvr ~ age + sex. Of each term, the 8 outcomes with the smallest p at most. "
    )


def test_the_figure_says_how_many_outcomes_are_clear(config):
    (figure,) = analysis_figures(config)
    assert figure.name == "analysis-ageing"
    assert "age 1 of 5" in figure.alt
    assert "too narrow" in figure.caption
    assert "then the 20 regions with the smallest p of age at most, sorted by its effect." in figure.caption


def test_an_analysis_of_measured_targets_does_not_speak_of_draws(config):
    """All methods are the same, and the intervals are those of least squares."""
    assert "by a jackknife over subjects" in analysis_tables(config)[0].caption
    rng = np.random.default_rng(1)
    design = pd.DataFrame({"Intercept": 1.0, "age": rng.normal(size=40)})
    write_analysis(config, np.repeat(rng.normal(size=(40, 5))[None], 2, axis=0), np.ones(40, bool), design)
    captions = [analysis_tables(config)[0].caption, analysis_figures(config)[0].caption]
    assert all("Every target is measured, so " in caption for caption in captions)
    assert not any("jackknife" in caption or "too narrow" in caption for caption in captions)


def test_a_study_without_analyses_has_none(tmp_path):
    config = parse_config({"study": {"name": "t", "results": str(tmp_path)}})
    assert analysis_tables(config) == analysis_figures(config) == []
