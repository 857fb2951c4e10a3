"""The end of `dualflow run` says where the results are, and which tracking records are still queued."""

import shlex

import pytest
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.commands.run import _executor, _machine_options, _print_results
from dualflow.commands.workflow_files import workflow_root
from dualflow.config import parse_config
from dualflow.tracking import ui


@pytest.fixture
def config(tmp_path):
    """Configuration of a study without results."""
    return parse_config({"study": {"name": "mine", "results": tmp_path}})


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("sqlite:///results/mlflow.db", "dualflow ui"),
        ("http://person:secret@127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_the_last_line_leads_to_the_tracked_runs(config, uri, line, capsys):
    """By a command for the default store, by the address of a server; nothing is queued."""
    tracking = config.tracking.model_copy(update={"uri": uri})
    _print_results(config.model_copy(update={"tracking": tracking}))
    output, errors = capsys.readouterr()
    assert output.splitlines()[-1] == f"{'tracked runs':<21}{line}"
    assert errors == ""


@pytest.mark.parametrize(
    "uri", ["sqlite:///other.db", "sqlite:///a folder/mlflow.db", "postgresql://person:secret@host/mlflow"]
)
def test_the_last_line_is_a_command_that_serves_the_tracked_runs(tmp_path, uri, capsys, monkeypatch):
    """Of any database and in any folder, and it shows no password."""
    served = []
    monkeypatch.setattr(ui, "serve_ui", lambda tracking, *_: served.append(tracking))
    study = {"name": "mine", "results": str(tmp_path / "the results")}
    config = parse_config({"study": study, "tracking": {"uri": uri, "artifacts": str(tmp_path / "artifacts")}})
    _print_results(config)
    line = capsys.readouterr().out.splitlines()[-1]
    program, *arguments = shlex.split(line.removeprefix("tracked runs"))
    assert program == "dualflow"
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert served == [config.tracking]
    assert "secret" not in line


def test_queued_records_are_reported(config, capsys):
    """With their number, and the command that uploads them."""
    folder = config.layout.pending_records / "unet"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number:08d}.json").touch()
    _print_results(config)
    errors = capsys.readouterr().err
    assert "warning: MLflow: 3 tracking records are not uploaded" in errors
    assert "`dualflow sync` with the same --config uploads them" in errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "local"),
        (["--executor", "slurm"], "slurm"),
        (["-e", "local", "--profile", "configs/profiles/slurm"], "local"),
        (["--profile", "configs/profiles/slurm", "--keep-going"], "slurm"),
        (["--profile=configs/profiles/local", "results/x/manifests/qc.json"], "local"),
        (["--profile", "named-elsewhere"], ""),
        (["--profile"], "local"),
    ],
)
def test_jobs_of_a_cluster_have_its_cores(options, expected):
    """The number of this machine's cores would limit the threads of a cluster's jobs."""
    assert _executor([option.replace("configs/", f"{workflow_root()}/configs/") for option in options]) == expected
    assert ("--cores" in _machine_options(parse_config({"study": {"name": "x"}}), "all", options)) == (
        _executor(options) == "local"
    )
