"""The workflow's imputation is that of its configuration, also after `dualflow impute` with other options."""

import pytest

from dualflow.commands import impute as module
from dualflow.commands.imputation_plan import forget_other_imputation
from dualflow.commands.impute import impute
from dualflow.config import parse_config
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
def test_the_table_of_the_configuration_stays(values, change):
    """A further analysis needs no other draws."""
    config = parse_config(values | {"impute": {"draws": 5, **change}})
    assert not forget_other_imputation(config)
    assert config.layout.manifest("impute").is_file()


@pytest.mark.parametrize(
    "change", [{"impute": {"draws": 6}}, {"impute": {"draws": 5}, "model": {"preset": "dual_glow"}}]
)
def test_another_table_is_drawn_again(values, change):
    config = parse_config(values | change)
    assert forget_other_imputation(config)
    assert not config.layout.manifest("impute").exists()
    assert not forget_other_imputation(config)


def test_a_study_without_an_imputation_has_nothing_to_forget(values):
    config = parse_config({"study": values["study"]})
    assert not forget_other_imputation(config)
    assert config.layout.manifest("impute").is_file()
