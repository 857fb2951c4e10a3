"""Every step of a study has a revision, and no other name has one."""

from dualflow.commands.steps import step_names
from dualflow.config import parse_config
from dualflow.revisions import REVISIONS


def test_each_step_of_a_study_has_a_revision():
    """A step without one would never be repeated after a change of what it computes."""
    config = parse_config(
        {"study": {"name": "tiny"}, "impute": {"analyses": {"main": "suvr ~ diagnosis"}}, "cohort": {"subjects": 20}}
    )
    assert {step.split("/")[0] for step in step_names(config)} == set(REVISIONS)
