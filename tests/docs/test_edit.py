"""The examples of docs/edit.md run as they are written, with small flows and simulated subjects."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from flow_zoo import batch, build_spec, small

from dualflow.flows.initialization import initialize_flow
from dualflow.flows.objective import Batch
from dualflow.inference.edit import Subject

PAGE = (Path(__file__).parents[2] / "docs" / "edit.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHAPE = (16, 16, 16)


@pytest.mark.parametrize("name", ["dualflow", "puflow"])
def test_examples_run(name):
    """Every block but the first, which loads files, runs, and its assertions hold."""
    target, source, side = (tensor.float() for tensor in batch(2, shape=SHAPE))
    flow = build_spec(small(name, interpolation_l1=1.0, whitening=False), shape=SHAPE).float().eval()
    initialize_flow(flow, Batch(target, source, side))
    ann, bob = (
        Subject(target[i : i + 1], source[i : i + 1], side[i : i + 1], torch.ones_like(target[:1], dtype=torch.bool))
        for i in range(2)
    )
    names = {"torch": torch, "flow": flow, "ann": ann, "bob": bob, "ten_years_older": side[:1] + 1}
    code = "\n".join(BLOCKS[1:])
    exec(compile(code, "docs/edit.md", "exec"), names)
    for result in ("older", "on_bob", "on_bob_like_bob", "ann_like_bob", "repaired", "filled"):
        assert names[result].shape == ann.target.shape
        assert names[result].isfinite().all()
    assert torch.equal(names["filled"][..., 8:], bob.target[..., 8:])
