"""FlowSpec and PRESETS: every wrong choice is refused in one readable line."""

from __future__ import annotations

import json

import pytest

from dualflow.errors import ConfigError
from dualflow.flows.coupling import COUPLINGS
from dualflow.flows.mean import MEANS
from dualflow.flows.presets import PRESETS, preset
from dualflow.flows.prior import PRIORS
from dualflow.flows.source import SOURCES
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import SQUEEZES

TABLES = {"squeeze": SQUEEZES, "coupling": COUPLINGS, "source": SOURCES, "prior": PRIORS, "mean": MEANS}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    """A preset written as JSON is read back equal."""
    assert FlowSpec.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


@pytest.mark.parametrize(("field", "table"), TABLES.items())
def test_choices_are_the_tables_rows(field, table):
    """A choice is accepted exactly if its table has the row, and the error lists the rows."""
    for row in table:
        preset("dualflow", **{field: row})
    with pytest.raises(ConfigError, match=f"{field} = 'nonsense': choose from: .*{list(table)[-1]}"):
        preset("dualflow", **{field: "nonsense"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 3}, "unknown flow option 'level'; did you mean 'levels'?"),
        ({"zzz": 3}, "unknown flow option 'zzz'; choose from: levels,"),
        ({"levels": 2}, r"steps = \(2, 2, 4\): expected one entry per level \(2\)"),
        ({"steps": [2, 0, 4]}, "steps = .*expected a list of positive whole numbers"),
        ({"low_rank": True}, "low_rank = True: expected a whole number"),
        ({"noise": "a lot"}, "noise = 'a lot': expected a number"),
        ({"noise": float("nan")}, "noise = nan"),
        ({"residual_scale": 0.0}, "residual_scale = 0: expected more than 0"),
        ({"side_dropout": 1.0}, "side_dropout = 1.0: expected at least 0 and below 1"),
        ({"prior_kernel": 4}, "prior_kernel = 4: expected an odd number"),
        ({"prior_scale": False}, "learns nothing; choose prior: standard"),
        ({"discriminator_weight": 0.1}, "needs side_in_context: false"),
        ({"prior": "split", "coupling_context": "none"}, "source 'encoder' is used by nothing"),
    ],
)
def test_wrong_options_are_explained(options, message):
    """The message names the field, the value and what was expected."""
    with pytest.raises(ConfigError, match=message):
        preset("dualflow", **options)


def test_unknown_preset_lists_the_presets():
    """An unknown preset names the rows there are."""
    with pytest.raises(ConfigError, match="unknown preset 'glow'; choose from: dual_glow, dualflow"):
        preset("glow")
