"""constraints.txt pins what pyproject.toml allows, each version with hashes and none with the address of an index."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "constraints.txt").read_text()
PINS = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", TEXT, re.MULTILINE)}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def requirements(*extras):
    """What `docker/requirements.py` prints."""
    command = [sys.executable, str(ROOT / "docker" / "requirements.py"), *extras]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()


def test_every_requirement_has_a_pin_within_its_range():
    """The tested versions are those that users may install."""
    for line in requirements(*EXTRAS):
        requirement = Requirement(line)
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), line


def test_every_pin_has_a_hash_and_no_address():
    """Nothing else is in the file: pins, hashes and comments."""
    entries = re.split(r"\n(?=\S)", re.sub(r"^(#.*)?\n", "", TEXT, flags=re.MULTILINE).strip())
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ;[^\n\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_an_extra_is_replaced_by_its_requirements():
    """`dev` includes the requirements of the other extras that it names."""
    assert {*EXTRAS["docs"], *EXTRAS["slurm"]} < set(requirements("dev"))
    assert not any(line.startswith("dualflow") for line in requirements(*EXTRAS))
