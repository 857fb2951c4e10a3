"""`dualflow run`: which options of Snakemake make it a dry run."""

import pytest
from click.testing import CliRunner
from snakemake.cli import get_argument_parser

from dualflow.cli import main
from dualflow.cli.study_commands import DRY_RUN


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Return a function that gives the options of Snakemake to `dualflow run`, and returns which function they reach.

    No step runs.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("study: {name: tiny}")
    names = []
    for module, name in (("dry_run", "list_steps"), ("run", "run_workflow")):
        monkeypatch.setattr(f"dualflow.commands.{module}.{name}", lambda *_, name=name: names.append(name) or 0)

    def called(options):
        CliRunner().invoke(main, ["run", "--config", "tiny.yaml", "--", *options], catch_exceptions=False)
        return names.pop()

    return called


@pytest.mark.parametrize(
    "options",
    [["-n"], ["--dryrun"], ["-np"], ["-nq"], ["-pn"], ["-kpn", "qc"], ["-nR", "qc"], ["-nj2"], ["--dry-r"]],
    ids=" ".join,
)
def test_a_dry_run_is_known_by_any_spelling(called, options):
    """Else the run would clear the study of broken manifests, and print results as if it were finished."""
    assert called(options) == "list_steps"


@pytest.mark.parametrize("options", [["-p"], ["-j2"], ["-cn"], ["-qn"], ["--until", "train"]], ids=" ".join)
def test_other_options_run(called, options):
    """The `n` of a value is no flag: `-cn` are `n` cores."""
    assert called(options) == "run_workflow"


def test_the_flags_of_a_cluster_are_those_of_snakemake():
    """Every short flag without a value may precede the `n`, and no other."""
    actions = [action for action in get_argument_parser()._actions if "-n" not in action.option_strings]
    short = {name: action.nargs == 0 for action in actions for name in action.option_strings if len(name) == 2}
    assert {name: bool(DRY_RUN.fullmatch(f"{name}n")) for name in short} == short
