"""From the name of a model to its folder."""

from pathlib import Path

import pytest

from dualflow.errors import CheckpointError
from dualflow.models.resolve import resolve_model


def test_a_folder_is_a_model():
    """The home folder is expanded."""
    assert resolve_model("results/a/seed-0") == Path("results/a/seed-0")
    assert resolve_model("~/m") == Path.home() / "m"


@pytest.mark.parametrize("uri", ["models:/dualflow@best", "runs:/1/model", "https://example.org/m"])
def test_uris_are_refused(uri):
    """The error quotes the URI."""
    with pytest.raises(CheckpointError, match=uri):
        resolve_model(uri)
