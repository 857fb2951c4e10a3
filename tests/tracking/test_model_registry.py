"""Registered models: files without pickle, a signature, no account name, and errors of one line."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.models import get_model_info
from mlflow_runs import UNREACHABLE

from dualflow.config import TrackingConfig
from dualflow.digests import sha256
from dualflow.errors import CheckpointError, CommitError, ConfigError
from dualflow.tracking import model_registry
from dualflow.tracking.model_registry import BUNDLE_TAG, Champion, ModelRegistry, Signature, reason, tracking_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]

SIGNATURE = Signature(channels=2, side=3, shape=(4, 5, 6))


@pytest.fixture(scope="module")
def store(tmp_path_factory, registry_uri):
    """Folder of the store, folder of a bundle, and URI of the store."""
    bundle = tmp_path_factory.mktemp("bundle")
    (bundle / "bundle.json").write_text("{}")
    (bundle / "model.safetensors").write_bytes(b"weights")
    return Path(registry_uri.removeprefix("sqlite:///")).parent, bundle, registry_uri


def register(store, name, **options):
    """Register the bundle under a name."""
    _, bundle, uri = store
    return ModelRegistry(name, uri).register(
        bundle, SIGNATURE, experiment="study", model="flow", tags={"dualflow.seed": "0"}, **options
    )


def test_a_version_has_files_signature_and_tags(store):
    """No file is pickled, and neither tags nor files name the account or the folder of the training."""
    folder, bundle, uri = store
    assert register(store, "files", scores="{}").number == "1"
    version = MlflowClient(uri).get_model_version("files", "1")
    assert version.tags == {"dualflow.seed": "0", BUNDLE_TAG: sha256(bundle / "bundle.json")}
    artifacts = Path(version.source.removeprefix("file://"))
    files = sorted(str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file())
    assert files == ["MLmodel", "bundle/bundle.json", "bundle/model.safetensors", "held_out.json"]
    signature = get_model_info(str(artifacts)).signature
    shapes = {entry.name: entry.shape for entry in (*signature.inputs, *signature.outputs)}
    assert shapes == {"source": (-1, 2, 4, 5, 6), "side": (-1, 3), "target": (-1, 1, 4, 5, 6)}
    text = (artifacts / "MLmodel").read_text()
    assert str(folder) not in text
    assert artifacts.is_relative_to(folder / "mlartifacts")


def test_the_same_bundle_is_registered_once(store):
    """A repeated call returns the version of the first."""
    first, second = register(store, "once"), register(store, "once")
    assert (first.number, first.created) == ("1", True)
    assert (second.number, second.created) == ("1", False)
    assert len(MlflowClient(store[2]).search_model_versions("name = 'once'")) == 1


def test_the_champion_has_its_scores(store):
    """None before the alias is set, and no scores if none were registered."""
    registry = ModelRegistry("champions", store[2])
    register(store, "champions", scores='{"people": 1}')
    assert registry.champion() is None
    registry.set_champion("1")
    assert registry.champion() == Champion("1", '{"people": 1}', None)
    register(store, "promoted")
    other = ModelRegistry("promoted", store[2])
    other.set_champion("1")
    assert other.champion() == Champion("1", None, None)


def test_large_scores_are_not_read(store, monkeypatch):
    """A file beyond the limit is refused by its size."""
    register(store, "large", scores="[1, 2, 3]")
    registry = ModelRegistry("large", store[2])
    registry.set_champion("1")
    monkeypatch.setattr(model_registry, "MAX_SCORES", 8)
    with pytest.raises(CheckpointError, match="has 9 bytes"):
        registry.champion()


def test_a_failed_upload_registers_nothing(store, monkeypatch):
    """The logged model is marked as failed, and the next call succeeds."""
    client = ModelRegistry("upload", store[2]).client

    def fail(*_arguments):
        raise OSError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "log_model_artifacts", fail)
        with pytest.raises(CommitError, match="disk is full"):
            register(store, "upload")
    assert client.search_model_versions("name = 'upload'") == []
    experiment = client.get_experiment_by_name("study").experiment_id
    assert "FAILED" in {str(model.status) for model in client.search_logged_models([experiment])}
    assert register(store, "upload").number == "1"


def test_a_server_that_is_away_is_an_error_of_one_line(store):
    """The message names the server, without credentials, and the name."""
    uri = UNREACHABLE.replace("//", "//user:secret@")
    with pytest.raises(CommitError, match="does not answer") as error:
        ModelRegistry("away", uri).register(store[1], SIGNATURE, experiment="study", model="flow", tags={})
    assert UNREACHABLE in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "a b", "../x"])
def test_names_that_cannot_be_in_a_uri_are_refused(store, name):
    """Before a store is opened."""
    with pytest.raises(ConfigError, match=r"registered model '.*': expected letters"):
        ModelRegistry(name, store[2])


def test_a_file_store_is_refused(tmp_path):
    """As in trainings."""
    with pytest.raises(ConfigError, match="expected sqlite:///FILE or a server"):
        ModelRegistry("x", f"file:{tmp_path}")


def test_artifacts_lie_beside_a_file():
    """The default store is that of trainings."""
    default = TrackingConfig()
    assert tracking_config(default.uri) == default


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("(postgresql://mlflow:secret/word@host/db) refuses", "(postgresql://host/db) refuses"),
        ("'http://user:secret word@host:5000' is down", "'http://host:5000' is down"),
        ("no route to http://host?password=secret&a=1", "no route to http://host?password=&a=1"),
        ("models:/fdg@champion: not on http://host", "models:/fdg@champion: not on http://host"),
    ],
)
def test_errors_are_reported_without_credentials(text, shown):
    """They may quote the URI."""
    assert reason(ValueError(text)) == shown
