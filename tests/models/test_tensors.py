"""Named tensors in a safetensors file."""

import torch
from safetensors.torch import load_file

from dualflow.models.tensors import save_tensors


def test_saved_tensors_are_restored_bit_for_bit(tmp_path):
    """Also views, and tensors that share storage."""
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"whole": whole, "steps": torch.tensor(3), "view": whole.T, "tied": whole, "row": whole[1]}
    save_tensors(tmp_path / "x.safetensors", tensors, {"a": "b"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
