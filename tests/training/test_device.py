"""Device selection of a training process."""

from __future__ import annotations

import pytest
import torch

from dualflow.errors import ConfigError
from dualflow.training import device as module
from dualflow.training.device import autocast, chosen_precision, select_device, synchronize
from dualflow.training.distributed import BACKENDS, process_group


@pytest.fixture
def gpus(monkeypatch):
    """Set the number of GPUs that torch reports."""

    def set_count(count):
        monkeypatch.setattr(module.torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(module.torch.cuda, "device_count", lambda: count)

    return set_count


@pytest.mark.parametrize(
    ("choice", "count", "local_rank", "device"),
    [
        ("auto", 0, "0", "cpu"),
        ("auto", 2, "0", "cuda:0"),
        ("auto", 2, "1", "cuda:1"),
        ("cuda", 4, "3", "cuda:3"),
        ("cpu", 2, "1", "cpu"),
    ],
)
def test_each_process_has_its_own_gpu(gpus, monkeypatch, choice, count, local_rank, device):
    """The local rank selects the GPU; without a GPU, or on request, the device is the CPU."""
    gpus(count)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert select_device(choice) == torch.device(device)
    assert select_device(choice).type in BACKENDS


@pytest.mark.parametrize(("choice", "count", "local_rank"), [("cuda", 0, "0"), ("auto", 1, "1"), ("cuda", 2, "2")])
def test_too_few_gpus_are_an_error_with_a_remedy(gpus, monkeypatch, choice, count, local_rank):
    """The error names the required and the available number of GPUs."""
    gpus(count)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(
        ConfigError,
        match=rf"--device = {choice}: process {int(local_rank) + 1} needs a GPU .* finds {count}; .*choose cpu",
    ):
        select_device(choice, "--device")


@pytest.mark.parametrize(
    ("device", "capability", "native", "expected"),
    [
        ("cpu", "AVX512", True, "bfloat16"),
        ("cpu", "AVX2", True, "float32"),
        ("cpu", "DEFAULT", True, "float32"),
        ("cuda", "AVX2", True, "bfloat16"),
        ("cuda", "AVX512", False, "float32"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_no_emulation(monkeypatch, device, capability, native, expected):
    """A step in emulated bfloat16 takes many times as long as one in float32."""
    monkeypatch.setattr(module.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(module.torch.cuda, "is_bf16_supported", lambda *, including_emulation: native)
    assert chosen_precision("auto", torch.device(device)) == expected
    for name in ("float32", "bfloat16"):
        assert chosen_precision(name, torch.device(device)) == name


@pytest.mark.parametrize(("capability", "expected"), [("AVX512", torch.bfloat16), ("AVX2", torch.float32)])
def test_convolutions_run_in_the_chosen_precision(monkeypatch, capability, expected):
    monkeypatch.setattr(module.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with autocast("auto", torch.device("cpu")):
        assert torch.nn.Conv3d(1, 1, 1)(torch.zeros(1, 1, 2, 2, 2)).dtype == expected


def test_float32_is_exact_on_a_gpu(gpus, monkeypatch):
    """Selecting a GPU disables TF32; selecting the CPU changes nothing."""
    gpus(1)
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        monkeypatch.setattr(backend, "allow_tf32", True)
    select_device("cpu")
    assert torch.backends.cudnn.allow_tf32
    select_device("cuda")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_gpu_finishes_before_a_clock_is_read(monkeypatch):
    """Work on a GPU is asynchronous; on the CPU there is nothing to wait for."""
    waited = []
    monkeypatch.setattr(module.torch.cuda, "synchronize", waited.append)
    synchronize(torch.device("cpu"))
    synchronize(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


def test_a_single_process_joins_no_group():
    """It has rank 0 and trains on the requested device."""
    with process_group("cpu") as group:
        assert (group.rank, group.world_size, group.device.type) == (0, 1, "cpu")
