"""`make crash-test`: kill a tiny training at random moments, resume it, and compare with an uninterrupted one.

Each trial kills its training once by SIGKILL, at a moment drawn from the length of an uninterrupted one. In every tenth
trial the training dies inside a write instead: before a file is flushed, before it is renamed, or half written. The
training then resumes until it ends. Its weights must equal the uninterrupted ones bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import SMALL, phantom

from dualflow.commit import TEMP_PREFIX, committing, sweep_temporaries
from dualflow.config import ModelConfig, TrainConfig
from dualflow.data.dataset import PairDataset
from dualflow.models import tensors
from dualflow.training.context import TrainingContext
from dualflow.training.train_flow import train_flow

CONFIG = TrainConfig(steps=12, validate_every=2, precision="float32", batch_size=2)
CALLS = ("fsync", "replace", "write")


def train(folder: Path) -> None:
    """Train the small default flow on phantoms, with a checkpoint at every second step."""
    pairs, held_out = (PairDataset([phantom(index) for index in indices]) for indices in (range(1, 7), (7, 8)))
    context = TrainingContext(CONFIG, folder / "states", seed=0, label="crash")
    trained = train_flow(ModelConfig(preset="dualflow", options=SMALL), pairs, held_out, context, side_features=1)
    with committing(folder / "weights.safetensors") as temp:
        save_file(trained.model.state_dict(), temp)


def in_a_child(folder: Path, die_in_write: tuple[str, int] | None = None) -> int:
    """Start the training in a child process; return its process ID."""
    child = os.fork()
    if child:
        return child
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    if die_in_write:
        _die_at(*die_in_write)
    try:
        train(folder)
        os._exit(0)
    except BaseException:
        os._exit(1)


def _die_at(call: str, count: int) -> None:
    """Make this process kill itself at the `count`-th flush, rename or (half-finished) write of a file."""
    left = [count]

    def dying(real):
        def wrapped(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                if call == "write":
                    path = Path(arguments[1])
                    real(*arguments, **options)
                    with path.open("r+b") as stream:
                        stream.truncate(path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return wrapped

    if call == "fsync":
        os.fsync = dying(os.fsync)
    elif call == "replace":
        Path.replace = dying(Path.replace)
    else:
        tensors.save_file = dying(tensors.save_file)


def trial(number: int, seed: int, length: float, expected: dict[str, torch.Tensor], folder: Path) -> str:
    """Kill one training, resume it, and return a description of the failure, or ''."""
    draw = random.Random(f"{seed}:{number}")
    in_write = (draw.choice(CALLS), draw.randint(1, 6)) if number % 10 == 0 else None
    child = in_a_child(folder, in_write)
    if not in_write:
        time.sleep(draw.uniform(0, length))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if in_write and not os.WIFSIGNALED(status):
        return f"did not die in {in_write}"
    sweep_temporaries(folder)
    _, status = os.waitpid(in_a_child(folder), 0)
    if status:
        return f"the resumed training ended with status {status}"
    if left := [path.name for path in folder.rglob(f"{TEMP_PREFIX}*")]:
        return f"left temporary files: {left}"
    weights = load_file(folder / "weights.safetensors")
    differing = [name for name, value in expected.items() if not torch.equal(weights[name], value)]
    return f"{len(differing)} tensors differ, such as {differing[0]}" if differing else ""


def main(kills: int, seed: int) -> int:
    """Run all trials; return the number of failures."""
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="dualflow-crash-") as scratch:
        root = Path(scratch)
        times = []
        for name in ("warm-up", "uninterrupted"):
            begun = time.perf_counter()
            _, status = os.waitpid(in_a_child(root / name), 0)
            assert status == 0, "the uninterrupted training failed"
            times.append(time.perf_counter() - begun)
        expected = load_file(root / "uninterrupted/weights.safetensors")
        print(f"an uninterrupted training takes {times[-1]:.1f} s; {kills} trials follow", flush=True)
        for number in range(kills):
            folder = root / f"trial-{number}"
            if failure := trial(number, seed, 1.05 * times[-1], expected, folder):
                failed += 1
                print(f"trial {number}: {failure}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            if (number + 1) % 25 == 0:
                print(f"{number + 1} of {kills}, {failed} failed", flush=True)
    print(f"{kills} kills, {failed} failures; {kills - failed} trainings ended with bit-identical weights")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(min(1, main(options.kills, options.seed)))
