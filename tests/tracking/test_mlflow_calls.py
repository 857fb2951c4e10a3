"""Each MLflow call is idempotent and records nothing private."""

import pytest
from mlflow import MlflowClient
from mlflow_runs import log_all, read_records, read_runs

from dualflow.tracking import tracked_run
from dualflow.tracking.mlflow_calls import CALLS, MAX_PARAMETERS, is_permanent_error
from dualflow.tracking.saved_view import TAG
from dualflow.tracking.tracked_run import tracked

ACCOUNT = "someaccountname"


@pytest.mark.slow
def test_neither_account_nor_folder_is_recorded(created_store, config):
    """They are in no tag, parameter or dataset."""
    folder, _ = created_store
    for run in read_runs(config).values():
        inputs = [(entry.dataset.to_dictionary(), list(map(dict, entry.tags))) for entry in run.inputs.dataset_inputs]
        recorded = str([run.data.tags, run.data.params, run.info.user_id, inputs])
        assert ACCOUNT not in recorded
        assert str(folder) not in recorded
        assert "script.py" not in recorded


@pytest.mark.slow
def test_calls_are_idempotent(config, monkeypatch):
    """A run whose calls are all made twice contains the same as one whose calls are made once."""
    with tracked(config, "study", "once", {}) as run:
        log_all(run)
    for name, call in list(CALLS.items()):
        monkeypatch.setitem(tracked_run.CALLS, name, lambda *arguments, call=call: (call(*arguments), call(*arguments)))
    with tracked(config, "study", "twice", {}) as run:
        log_all(run)
    assert read_records(config, "twice") == read_records(config, "once")
    experiment = MlflowClient(config.uri).get_experiment_by_name("study")
    assert experiment.tags[TAG] == "view"


@pytest.mark.slow
def test_many_parameters_are_sent_in_several_requests(config):
    """MLflow limits their number per request; a parameter that is logged already keeps its value."""
    count = 2 * MAX_PARAMETERS + 1
    with tracked(config, "study", "many parameters", {}) as run:
        run.parameters({"p0": "first"})
        run.parameters({f"p{number}": number for number in range(count)})
    parameters = read_runs(config)["many parameters"].data.params
    assert parameters == {"p0": "first"} | {f"p{number}": str(number) for number in range(1, count)}


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (FileNotFoundError("gone"), True),
        (ConnectionError("refused"), False),
        ("INVALID_PARAMETER_VALUE", True),
        ("RESOURCE_DOES_NOT_EXIST", True),
        ("TEMPORARILY_UNAVAILABLE", False),
        ("INTERNAL_ERROR", False),
    ],
)
def test_permanent_errors(error, permanent):
    """A rejected request or a missing file is permanent; a server error is not."""
    if isinstance(error, str):
        code, error = error, Exception("from MLflow")
        error.error_code = code
    assert is_permanent_error(error) is permanent
