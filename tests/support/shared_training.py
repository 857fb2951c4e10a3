"""One rank of a distributed training: `torchrun ... shared_training.py OUT STEPS [DIE_AT]`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import SMALL, phantom

from dualflow.config import ModelConfig, TrainConfig
from dualflow.data.dataset import PairDataset
from dualflow.training import session
from dualflow.training.distributed import joined
from dualflow.training.train_flow import train_flow


def main(out: Path, steps: int, die_at: int) -> None:
    """Train the small default flow on phantoms; rank 1 kills itself once, before step `die_at`."""
    torch.set_num_threads(1)
    config = TrainConfig(steps=steps, validate_every=5, precision="float32", batch_size=2)
    to_inputs = session.to_inputs
    calls, marker = [0], out / "died"

    def inputs(batch, device):
        calls[0] += 1
        if die_at and calls[0] == die_at and os.environ.get("RANK") == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return to_inputs(batch, device)

    session.to_inputs = inputs
    pairs, held_out = (PairDataset([phantom(index) for index in indices]) for indices in (range(1, 7), (7, 8, 9)))
    with joined() as ranks:
        trained = train_flow(
            ModelConfig(preset="dualflow", options=SMALL), pairs, held_out, config,
            side_features=1, label="shared", seed=0, folder=out / "states", ranks=ranks,
        )  # fmt: skip
        if ranks.first:
            save_file(trained.model.state_dict(), out / "weights.safetensors")
            (out / "history.json").write_text(json.dumps(trained.history.entries))
        ranks.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
