"""Download of registered models: verified, cached, and used without the server only with a warning."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_runs import UNREACHABLE

from dualflow.errors import CheckpointError, ConfigError
from dualflow.tracking import model_download
from dualflow.tracking.model_download import ModelUri, cache_folder, download_model, is_model_uri
from dualflow.tracking.model_registry import ModelRegistry, Signature

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]


def verify(folder):
    """Accept a folder with intact weights only."""
    if (folder / "model.safetensors").read_bytes() != b"weights":
        raise CheckpointError("damaged")


@pytest.fixture(scope="module")
def master(tmp_path_factory, registry_uri):
    """Database with two versions of `fdg`; the champion is the second. A third has no bundle."""
    folder = tmp_path_factory.mktemp("versions")
    registry = ModelRegistry("fdg", registry_uri)
    for number in ("1", "2"):
        bundle = folder / number
        bundle.mkdir()
        (bundle / "bundle.json").write_text(json.dumps({"number": number}))
        (bundle / "model.safetensors").write_bytes(b"weights")
        registry.register(bundle, Signature(1, 1, (2, 2, 2)), experiment="s", model="m", tags={})
    registry.set_champion("2")
    registry.client.create_model_version("fdg", registry.client.get_model_version("fdg", "1").source)
    return Path(registry_uri.removeprefix("sqlite:///"))


@pytest.fixture
def uri(master, tmp_path, monkeypatch):
    """URI of a copy of the database, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copy(master, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def number(folder):
    """Which version a folder holds."""
    return json.loads((folder / "bundle.json").read_text())["number"]


def test_alias_and_version_are_resolved(uri, tmp_path):
    """Both give the files of their version, in the cache."""
    champion = download_model("models:/fdg@champion", uri, verify)
    assert number(champion) == "2"
    assert number(download_model("models:/fdg/1", uri, verify)) == "1"
    assert champion.is_relative_to(tmp_path / "cache" / "dualflow" / "models")
    assert sorted(path.name for path in champion.iterdir()) == ["bundle.json", "model.safetensors"]


def test_a_cached_version_is_not_downloaded_again(uri, monkeypatch, capsys):
    """Unless it is damaged, or the alias has moved."""
    folder = download_model("models:/fdg@champion", uri, verify)
    assert "downloading fdg version 2" in capsys.readouterr().err
    assert download_model("models:/fdg@champion", uri, verify) == folder
    assert capsys.readouterr().err == ""
    (folder / "model.safetensors").write_bytes(b"weightX")
    assert download_model("models:/fdg@champion", uri, verify) == folder
    verify(folder)
    MlflowClient(uri).set_registered_model_alias("fdg", "champion", "1")
    assert number(download_model("models:/fdg@champion", uri, verify)) == "1"


def test_without_the_server_the_last_version_is_used_loudly(uri, tmp_path, capsys):
    """The warning names the version and the day; a model that was never used is an error."""
    folder = download_model("models:/fdg@champion", uri, verify)
    capsys.readouterr()
    (tmp_path / "mlflow.db").unlink()
    assert download_model("models:/fdg@champion", uri, verify) == folder
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: MLflow at sqlite:///")
    assert "Using version 2 from the cache, which models:/fdg@champion named on 20" in warning
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(CheckpointError, match=r"does not answer .*has not used the model before"):
        download_model("models:/fdg/1", uri, verify)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"its copy in .* is missing or damaged"):
        download_model("models:/fdg@champion", uri, verify)


def test_a_version_of_one_server_is_not_that_of_another(uri):
    """What a URI resolved to is remembered for its store only."""
    download_model("models:/fdg@champion", uri, verify)
    with pytest.raises(CheckpointError, match="has not used the model before") as error:
        download_model("models:/fdg@champion", UNREACHABLE, verify)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/fdg@gone", "has no such model"),
        ("models:/fdg/99", "has no such model"),
        ("models:/gone@champion", "has no such model"),
        ("models:/fdg/3", r"version 3 is no dualflow model \(it has no tag"),
    ],
)
def test_what_does_not_exist_is_said(uri, model, message):
    """An unknown alias, version or name, and a version of another program; the cache is not asked."""
    with pytest.raises(CheckpointError, match=message) as error:
        download_model(model, uri, verify)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["record", "weights", "folder", "size"])
def test_a_version_that_does_not_verify_is_not_cached(uri, damage):
    """Files that were changed on the server, unexpected folders, and too many bytes."""
    source = Path(MlflowClient(uri).get_model_version("fdg", "2").source.removeprefix("file://")) / "bundle"
    original = {path.name: path.read_bytes() for path in source.iterdir()}
    patch = pytest.MonkeyPatch()
    try:
        if damage == "record":
            (source / "bundle.json").write_text('{"number": "3"}')
        elif damage == "weights":
            (source / "model.safetensors").write_bytes(b"weightX")
        elif damage == "folder":
            (source / "more").mkdir()
            (source / "more" / "x").write_text("x")
        else:
            patch.setattr(model_download, "MAX_BYTES", 8)
        with pytest.raises(CheckpointError):
            download_model("models:/fdg@champion", uri, verify)
    finally:
        patch.undo()
        shutil.rmtree(source / "more", ignore_errors=True)
        for name, data in original.items():
            (source / name).write_bytes(data)
    assert not list((cache_folder() / "models").glob("*"))
    assert number(download_model("models:/fdg@champion", uri, verify)) == "2"


@pytest.mark.parametrize(
    "text", ["models:/", "models:/a", "models:/a@", "models:/a/b", "models:/a@b/1", "models:/../x/1"]
)
def test_other_uris_are_refused(text):
    """The message shows both forms."""
    with pytest.raises(ConfigError, match=r"models:/NAME@ALIAS|expected letters"):
        ModelUri.parse(text)
    assert is_model_uri(text)


def test_uris_are_read():
    """Name, alias and version."""
    assert ModelUri.parse("models:/a.b@champion") == ModelUri("a.b", alias="champion")
    assert ModelUri.parse("models:/a-b/12") == ModelUri("a-b", version="12")
    assert not is_model_uri("results/models")


def test_the_cache_follows_the_standard(monkeypatch, tmp_path):
    """An empty or relative XDG_CACHE_HOME does not count."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in (("", tmp_path / ".cache"), ("x", tmp_path / ".cache"), ("/var/c", Path("/var/c"))):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == expected / "dualflow"
