"""The processes of one training listen on the loopback interface only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualflow.training.distributed import launch_command

# Each rank joins the group; the first prints on which addresses torchrun and all ranks listen.
SCRIPT = """
import os, sys
import torch
from torch import distributed
sys.path.insert(0, sys.argv[1])
from sockets import listening_addresses
from dualflow.training.distributed import process_group

with process_group() as group:
    assert group.sums({"rank": float(group.rank)}) == {"rank": 1.0}
    if group.is_main:
        print("LISTENING", *sorted(listening_addresses(os.getppid())))
    group.wait()
"""


@pytest.mark.slow
def test_no_process_listens_on_the_network(tmp_path):
    """Neither torchrun's store nor the ranks' collectives."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = launch_command(2, [str(tmp_path / "script.py"), str(Path(__file__).parents[1] / "support")])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert "LISTENING 127.0.0.1\n" in result.stdout
    assert command[0] == sys.executable
