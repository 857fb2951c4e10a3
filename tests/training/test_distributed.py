"""Several processes train as one: the same losses and weights, also when one of them is killed on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from dualflow.config import TrainConfig
from dualflow.data.dataset import collate
from dualflow.errors import ConfigError
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.memory import set_memory
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import PRESETS, preset
from dualflow.flows.rng import batch_shard, standard_noise, uniform_noise
from dualflow.training.distributed import ProcessGroup
from dualflow.training.trainer import _distributed, to_inputs

SMALL = {"levels": 3, "steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8}

SCRIPT = Path(__file__).parents[1] / "support" / "shared_training.py"
STEPS = 20


def run(out, processes, *arguments):
    """Train in `processes` processes; return the history's entries and the weights."""
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--max-restarts=3"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(out), str(STEPS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "history.json").read_text()), load_file(out / "weights.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The training by one process."""
    return run(tmp_path_factory.mktemp("alone") / "out", 1)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("13",)], ids=["unbroken", "one killed"])
def test_two_processes_train_as_one(alone, tmp_path, arguments):
    """Losses within 1e-4 of one process's over 20 steps; after a kill the group starts again and ends the same."""
    entries, weights = run(tmp_path / "out", 2, *arguments)
    assert (tmp_path / "out/died").exists() == bool(arguments)
    for expected, found in zip(alone[0], entries, strict=True):
        assert found.keys() == expected.keys()
        for name in ("loss", "nll", "validation/loss", "validation/mae", "gradient_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), (expected["step"], name)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-3)


def test_parts_of_a_batch_draw_what_the_whole_would():
    """Whoever shares the work, each person gets the same numbers; a generator of one's own is not shared."""
    whole = torch.zeros(4, 3)
    torch.manual_seed(0)
    expected = [standard_noise((4, 3), whole), uniform_noise(whole)]
    for rank in range(2):
        torch.manual_seed(0)
        with batch_shard(rank, 2):
            found = [standard_noise((2, 3), whole), uniform_noise(whole[:2])]
            own = standard_noise((2, 3), whole, torch.Generator().manual_seed(1))
        for one, all_of_it in zip(found, expected, strict=True):
            assert torch.equal(one, all_of_it[2 * rank : 2 * rank + 2])
        assert torch.equal(own, standard_noise((2, 3), whole, torch.Generator().manual_seed(1)))


def test_a_batch_that_cannot_be_shared_is_refused():
    """By the configuration, and where processes are started by hand."""
    with pytest.raises(ValueError, match="cannot be shared by 2 processes"):
        TrainConfig(batch_size=3, processes=2)
    with pytest.raises(ConfigError, match="cannot be shared by 2 processes"):
        ProcessGroup(1, 2).rows(3)
    assert ProcessGroup(1, 2).rows(4) == slice(2, 4)


@pytest.fixture(scope="module")
def _group():
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("memory", ["stored", "reversible"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_shared(name, memory, phantoms):
    """In every step each parameter that gradients are averaged of gets one, or the next step is refused."""
    torch.manual_seed(0)
    batch = to_inputs(collate(phantoms.items[:2]), torch.device("cpu"))
    flow = DualFlow(preset(name, **SMALL | {"low_rank": 2 * (name == "dualflow")}), shape=(16, 16, 16), side_features=1)
    initialize_flow(flow, **batch)
    objective = FlowObjective(flow).train()
    set_memory(objective, memory)
    shared, optimiser = _distributed(objective), torch.optim.Adam(objective.parameters())
    for step in range(4):
        objective.set_progress(step / 4)
        optimiser.zero_grad()
        shared(**batch)["loss"].backward()
        optimiser.step()
