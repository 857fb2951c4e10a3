"""Distributed training: several processes give the losses and weights of one, even if one of them is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from dualflow.baselines import BASELINES
from dualflow.config import TrainConfig
from dualflow.config.learning import SEEDED
from dualflow.data.dataset import collate
from dualflow.errors import ConfigError
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.memory import set_memory
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import PRESETS, preset
from dualflow.flows.rng import batch_shard, standard_noise, uniform_noise
from dualflow.training.distributed import ProcessGroup, launch_command
from dualflow.training.trainer import _distributed, to_batch

SMALL = {"levels": 3, "steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8}

SCRIPT = Path(__file__).parents[1] / "support" / "shared_training.py"
STEPS = 12


def run(out, processes, *arguments):
    """Train in `processes` processes; return the history's entries and the weights."""
    out.mkdir()
    program = [str(SCRIPT), str(out), str(STEPS), *arguments]
    command = launch_command(processes, program) if processes > 1 else [sys.executable, *program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((out / "history.json").read_text()), load_file(out / "weights.safetensors")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Losses agree within 1e-4 over 12 steps, although a killed process makes the group restart."""
    single = run(tmp_path / "single", 1)
    entries, weights = run(tmp_path / "out", 2, "8")
    assert (tmp_path / "out/died").exists()
    for expected, entry in zip(single[0], entries, strict=True):
        assert entry.keys() == expected.keys()
        for name in ("loss", "nll", "validation/loss", "validation/mae", "gradient_norm"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4), (expected["step"], name)
    for name, value in single[1].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-3)


def test_shards_of_a_batch_draw_the_noise_of_the_whole():
    """The noise of a scan does not depend on the number of processes; explicit generators are not sharded."""
    whole = torch.zeros(4, 3)
    torch.manual_seed(0)
    expected = [standard_noise((4, 3), whole), uniform_noise(whole)]
    for rank in range(2):
        torch.manual_seed(0)
        with batch_shard(rank, 2):
            shards = [standard_noise((2, 3), whole), uniform_noise(whole[:2])]
            generated = standard_noise((2, 3), whole, torch.Generator().manual_seed(1))
        for shard, noise in zip(shards, expected, strict=True):
            assert torch.equal(shard, noise[2 * rank : 2 * rank + 2])
        assert torch.equal(generated, standard_noise((2, 3), whole, torch.Generator().manual_seed(1)))


def test_a_batch_that_cannot_be_shared_is_refused():
    """The configuration refuses it, and so does a group that was started by hand."""
    with pytest.raises(ValueError, match="cannot be shared by 2 processes"):
        TrainConfig(batch_size=3, processes=2)
    with pytest.raises(ConfigError, match="cannot be shared by 2 processes"):
        ProcessGroup(1, 2).rows(3)
    assert ProcessGroup(1, 2).rows(4) == slice(2, 4)


def objectives(name, batch):
    """The objectives of a model, one per stage, before its first step."""
    torch.manual_seed(0)
    if name in PRESETS:
        flow = DualFlow(preset(name, **SMALL), shape=(16, 16, 16), side_features=1)
        initialize_flow(flow, batch)
        return [FlowObjective(flow)]
    model = BASELINES[name]((16, 16, 16), 1, 1, width=8)
    return [stage for stage in (model.first_stage(), model.objective()) if stage is not None]


@pytest.mark.parametrize("name", [name for name in (*PRESETS, *SEEDED) if name != "puflow"])
def test_the_loss_of_a_batch_is_the_mean_of_its_scans(name, phantoms):
    """Otherwise a training would depend on how many processes share a batch; here one brain is half the other's.

    The interpolation loss of `puflow` is a mean over all hidden voxels.
    """
    items = [dict(item) for item in phantoms.items[:2]]
    items[1]["mask"] = items[1]["mask"].clone()
    items[1]["mask"][..., 8:] = False
    whole = to_batch(collate(items), torch.device("cpu"))
    for objective in objectives(name, whole):
        losses = []
        for rank, shares in [(0, 1), (0, 2), (1, 2)]:
            torch.manual_seed(0)
            with batch_shard(rank, shares), torch.no_grad():
                rows = to_batch(collate(items if shares == 1 else [items[rank]]), torch.device("cpu"))
                losses.append(objective.train()(rows)["loss"].item())
        assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-4)


@pytest.fixture(scope="module")
def _group():
    """A process group with a single process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("memory", ["stored", "reversible"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_under_ddp(name, memory, phantoms):
    """Every parameter that DistributedDataParallel expects a gradient of gets one; otherwise the next step fails."""
    torch.manual_seed(0)
    batch = to_batch(collate(phantoms.items[:2]), torch.device("cpu"))
    flow = DualFlow(preset(name, **SMALL | {"low_rank": 2 * (name == "dualflow")}), shape=(16, 16, 16), side_features=1)
    initialize_flow(flow, batch)
    objective = FlowObjective(flow).train()
    set_memory(objective, memory)
    distributed_objective, optimiser = _distributed(objective), torch.optim.Adam(objective.parameters())
    for step in range(4):
        objective.set_progress(step / 4)
        optimiser.zero_grad()
        distributed_objective(batch)["loss"].backward()
        optimiser.step()
