"""A model on the command line is a folder or a registered model."""

from pathlib import Path

import pytest
from evaluated_study import HELD_OUT, EvaluatedStudy

from dualflow.commands.publish import publish
from dualflow.errors import ConfigError
from dualflow.inference.model_location import locate_model
from dualflow.models.bundle import verify_bundle


def test_a_folder_is_itself():
    """No store is opened; `~` is the home folder, as in inputs."""
    assert locate_model("results/model", "file:nowhere") == Path("results/model")
    assert locate_model("~/model", "file:nowhere") == Path.home() / "model"


def test_a_wrong_uri_is_refused():
    """Before a store is opened."""
    with pytest.raises(ConfigError, match="models:/NAME@ALIAS"):
        locate_model("models:/fdg", "file:nowhere")


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")
def test_a_registered_model_is_a_bundle_in_the_cache(tmp_path, card, monkeypatch, registry_uri):
    """What was published is what is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    study = EvaluatedStudy(tmp_path / "phantoms", card)
    model = study.model("first", 1.0, [0.1] * len(HELD_OUT))
    publish(model, "located", registry_uri)
    folder = locate_model("models:/located@champion", registry_uri)
    verify_bundle(folder)
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
