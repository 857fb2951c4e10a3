"""Which device a process trains on."""

from __future__ import annotations

import pytest
import torch

from dualflow.errors import ConfigError
from dualflow.training import device as module
from dualflow.training.device import select_device
from dualflow.training.distributed import BACKENDS, process_group


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are so many."""

    def pretend(count):
        monkeypatch.setattr(module.torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(module.torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("choice", "count", "place", "device"),
    [
        ("auto", 0, "0", "cpu"),
        ("auto", 2, "0", "cuda:0"),
        ("auto", 2, "1", "cuda:1"),
        ("cuda", 4, "3", "cuda:3"),
        ("cpu", 2, "1", "cpu"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(gpus, monkeypatch, choice, count, place, device):
    """By its number on this machine; without a GPU, or asked for it, the CPU."""
    gpus(count)
    monkeypatch.setenv("LOCAL_RANK", place)
    assert select_device(choice) == torch.device(device)
    assert select_device(choice).type in BACKENDS


@pytest.mark.parametrize(("choice", "count", "place"), [("cuda", 0, "0"), ("auto", 1, "1"), ("cuda", 2, "2")])
def test_too_few_gpus_are_an_error_with_a_remedy(gpus, monkeypatch, choice, count, place):
    """It names how many were asked for and found."""
    gpus(count)
    monkeypatch.setenv("LOCAL_RANK", place)
    with pytest.raises(ConfigError, match=rf"{int(place) + 1} GPUs are needed .* finds {count}; set train.processes"):
        select_device(choice)


def test_a_process_alone_joins_nobody():
    """And trains where it is told to."""
    with process_group("cpu") as group:
        assert (group.rank, group.world_size, group.device.type) == (0, 1, "cpu")
