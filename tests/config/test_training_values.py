"""What the training of one model depends on."""

import pytest

from dualflow.config import parse_config, training_values


def values(name, **sections):
    return training_values(parse_config({"study": {"name": "tiny"}, **sections}), name)


@pytest.mark.parametrize(
    ("sections", "changed"),
    [
        ({"train": {"batch_size": 4}}, {"dualflow", "unet"}),
        ({"train": {"learning_rate": 1e-4}}, {"dualflow"}),
        ({"train": {"steps": 9}}, {"dualflow"}),
        ({"model": {"steps": 9}}, {"dualflow"}),
        ({"model": {"options": {"noise": 0.1}}}, {"dualflow", "unet"}),  # by the width of the network
        ({"baselines": {"steps": 9}}, {"unet"}),
        ({"baselines": {"training": {"unet": {"learning_rate": 0.1}}}}, {"unet"}),
        ({"train": {"seeds": [0, 1], "threads": 2, "max_skipped": 3}}, set()),
        ({"extra_models": {"other": {"preset": "c_glow"}}}, set()),
    ],
)  # fmt: skip
def test_a_change_concerns_the_models_that_it_changes(sections, changed):
    """Flows and networks have steps and rates of their own; closed forms depend on none of this."""
    names = ("dualflow", "unet", "stacked_mixture")
    assert {name for name in names if values(name, **sections) != values(name)} == changed


def test_a_network_of_a_given_width_does_not_depend_on_the_flow():
    """Without a width it is about as large as the main flow."""
    baselines = {"training": {"unet": {"width": 16}}}
    assert values("unet", baselines=baselines) == values("unet", baselines=baselines, model={"preset": "c_glow"})


def test_a_flow_with_steps_of_its_own_does_not_depend_on_those_of_others():
    """As the further flows of a comparison have."""
    flow = {"other": {"preset": "c_glow", "steps": 5}}
    assert values("other", extra_models=flow) == values("other", extra_models=flow, train={"steps": 9})
