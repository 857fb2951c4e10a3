"""Progress without a terminal: a line per finished step, and a heartbeat."""

from types import SimpleNamespace

from dualflow.commands.run_display import HEARTBEAT_S, LineDisplay
from dualflow.commands.snakemake_log import Job


def test_finished_steps_and_heartbeats_are_lines(capsys):
    """A finished step has number and seconds; a heartbeat lists running steps after a minute without a line."""
    now = [0.0]
    display = LineDisplay(lambda: now[0])
    log = SimpleNamespace(total=23, finished=[], running={"3": (Job("train", "3", "model=unet, seed=0"), 0.0)})
    display.show(log, {})
    log.finished += [("index", 1.0), ("preprocess shard 0", 83.4)]
    display.show(log, {})
    display.show(log, {})
    now[0] += HEARTBEAT_S
    display.show(log, {"a": ("train unet, seed 0", 40, 250, ""), "b": ("done", 3, 3, "")})
    now[0] += HEARTBEAT_S
    display.show(log, {})
    assert capsys.readouterr().out.splitlines() == [
        "[1/23] index: 1 s",
        "[2/23] preprocess shard 0: 83 s",
        "2 of 23 steps done after 1 min; running: train unet, seed 0 40/250",
        "2 of 23 steps done after 2 min; running: train unet seed 0",
    ]
