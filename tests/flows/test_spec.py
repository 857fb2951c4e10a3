"""FlowSpec and PRESETS: accepted values, and one clear line for each wrong value."""

from __future__ import annotations

import json
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from dualflow.errors import ConfigError
from dualflow.flows.actnorm import ACTNORMS
from dualflow.flows.attention import ATTENTIONS
from dualflow.flows.coupling import COUPLING_TRANSFORMS
from dualflow.flows.dequantization import DEQUANTIZATIONS
from dualflow.flows.mean_models import MEANS
from dualflow.flows.mixing import MIXINGS
from dualflow.flows.predictions import PREDICTIONS
from dualflow.flows.presets import PRESETS, preset
from dualflow.flows.prior import PRIORS
from dualflow.flows.source import SOURCES
from dualflow.flows.source_spread import SPREADS
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import SQUEEZES

TABLES = {
    "squeeze": SQUEEZES,
    "actnorm": ACTNORMS,
    "mixing": MIXINGS,
    "coupling": COUPLING_TRANSFORMS,
    "attention": ATTENTIONS,
    "source": SOURCES,
    "prior": PRIORS,
    "mean": MEANS,
    "spread": SPREADS,
    "dequantisation": DEQUANTIZATIONS,
    "prediction": PREDICTIONS,
}
PERMISSIVE = {
    "context": "level", "prediction": "temperature0", "spread": "constant", "whitening": False,
    "source_nll_weight": 0.0,
}  # fmt: skip
"""Options with which the default takes every row of every table."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    """A preset written as JSON and read back is equal."""
    assert FlowSpec.from_dict(json.loads(json.dumps(PRESETS[name].spec.to_dict()))) == PRESETS[name].spec


@pytest.mark.parametrize(("field", "table"), TABLES.items())
def test_choices_are_the_rows_of_their_table(field, table):
    """A value is accepted exactly if its table has the row, and the error lists the rows."""
    assert get_args(get_type_hints(FlowSpec)[field]) == tuple(table)
    for row in table:
        preset("dualflow", **{**PERMISSIVE, field: row})
    with pytest.raises(ConfigError, match=f"{field} = 'nonsense': choose from: .*{list(table)[-1]}"):
        preset("dualflow", **{field: "nonsense"})


def test_every_named_choice_has_a_table():
    """Every field with named values has a table, except `context`."""
    named = {field for field, hint in get_type_hints(FlowSpec).items() if get_origin(hint) is Literal}
    assert named - {"context"} == set(TABLES)


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
        ({"discriminator_weight": 0.1, "side_in_context": True}, "needs side_in_context: false"),
        ({"prior": "split", "context": "none"}, "source 'glow_pyramid' is unused"),
        ({"prior": "standard", "context": "none", "source": "glow", "mean": "none"}, "source 'glow' is unused"),
        ({"context": "none", "actnorm": "conditional"}, "actnorm: conditional needs the source; choose context: level"),
        ({"context": "none", "mixing": "conditional"}, "mixing: conditional needs the source"),
        ({"context": "none", "injector": True}, "injector: true needs the source"),
        ({"source": "glow", "source_pretrain": 0.1}, "need an encoder; choose source: encoder"),
        ({"source": "glow", "source_frozen": 0.1}, "need an encoder; choose source: encoder"),
        ({"mean": "none"}, "prediction = 'mean' needs a mean model"),
        ({"nll_weight": 0}, "leave nothing to learn"),
        ({"source_frozen": 1.0}, "source_frozen = 1.0: expected at least 0 and below 1"),
        ({"bin_width": 0}, "bin_width = 0: expected more than 0"),
        ({"prediction_samples": 0}, "prediction_samples = 0: expected more than 0"),
        ({"injector": 1}, "injector = 1: expected true or false"),
    ],
)
def test_wrong_options_are_explained(options, message):
    """The message names the field, the value and what was expected."""
    with pytest.raises(ConfigError, match=message):
        preset("dualflow", **options)


def test_two_flows_with_a_mean_need_no_link():
    """They are a baseline of the link: source and residual have a density each, and the mean sees the source."""
    spec = preset("dualflow", prior="standard", source="glow")
    assert spec.has_source_density


@pytest.mark.parametrize("term", ["decode_l1", "interpolation_l1"])
def test_one_term_of_the_loss_is_enough(term):
    """Without a likelihood, either L1 term trains a flow."""
    assert getattr(preset("dualflow", nll_weight=0, whitening=False, **{term: 1.0}), term) == 1.0


def test_unknown_preset_lists_the_presets():
    """The error of an unknown preset lists the presets."""
    with pytest.raises(ConfigError, match=r"unknown preset 'glow'; choose from: .*c_glow, .*dual_glow, dualflow"):
        preset("glow")
