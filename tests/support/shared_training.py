"""One rank of a distributed training: `torchrun ... shared_training.py OUT STEPS [DIE_AT] [--device D] [--batch B]`."""

from __future__ import annotations

import argparse
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
from dualflow.training.context import TrainingContext
from dualflow.training.distributed import process_group
from dualflow.training.train_flow import train_flow
from dualflow.training.trainer import Trainer


def main(out: Path, steps: int, die_at: int, device: str, batch: int) -> None:
    """Train the small default flow on phantoms; rank 1 kills itself once, before step `die_at`."""
    torch.set_num_threads(1)
    config = TrainConfig(steps=steps, validate_every=5, precision="float32", batch_size=batch)
    train_step, marker = Trainer.train_step, out / "died"

    def dying_step(trainer, step, batch):
        if step == die_at and os.environ.get("RANK") == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(trainer, step, batch)

    Trainer.train_step = dying_step
    pairs, held_out = (PairDataset([phantom(index) for index in indices]) for indices in (range(1, 7), (7, 8, 9)))
    with process_group(device) as group:
        context = TrainingContext(config, out / "states", seed=0, label="shared", group=group)
        choice = ModelConfig(preset="dualflow", options=SMALL)
        trained = train_flow(choice, pairs, held_out, context)
        if group.is_main:
            save_file(trained.model.state_dict(), out / "weights.safetensors")
            (out / "history.json").write_text(json.dumps(trained.history.entries))
        group.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("die_at", type=int, nargs="?", default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    main(**vars(parser.parse_args()))
