"""The table of model files, and the limits of their sizes."""

import pytest

from dualflow.errors import CheckpointError
from dualflow.models.model_files import MODEL_FILES, read_limited


def test_a_file_is_read_up_to_its_limit(tmp_path):
    """One byte more is refused, and the message has both sizes."""
    path = tmp_path / "x.json"
    path.write_text("12345")
    assert read_limited(path, 5) == "12345"
    with pytest.raises(CheckpointError, match=r"x\.json: has 5 bytes, expected at most 4; copy"):
        read_limited(path, 4)


def test_only_formats_without_code_belong_to_a_model():
    """Tensors are safetensors, and everything else is JSON of at most a mebibyte."""
    for name, row in MODEL_FILES.items():
        assert name.endswith((".safetensors", ".json"))
        assert row.limit <= (1 << 20 if name.endswith(".json") else 16 << 30)
