"""Write constraints.txt: the versions installed here, with the hashes of their files (`make constraints`).

PyPI's torch for Linux needs CUDA libraries and a CPU build does not. The file serves both: it pins those libraries too,
and has the hashes of PyPI's builds and of those that pip finds here. No address of an index is written.
"""

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory

from requirements import ROOT, requirements

HEADER = """\
# The tested versions with the hashes of their files, for Python 3.11 to 3.13 on Linux x86_64: `make constraints`.
# pip takes the packages that it needs from this list: pip install --require-hashes --constraint constraints.txt ...
"""
EXTRAS = ["dev", "server", "sbom"]
PYTHONS = ["3.11", "3.12", "3.13"]


def tested_versions() -> dict[str, str]:
    """Name -> version of the distributions in this environment; pip is always the newest."""
    versions: dict[str, str] = {}
    for entry in distributions():
        versions.setdefault(entry.metadata["Name"], entry.version)
    return {name: version for name, version in sorted(versions.items()) if name not in ("dualflow", "pip")}


def pip_tool(*arguments: str, given: str = "") -> str:
    """Run a module of this Python and return its output."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], input=given, text=True, stdout=subprocess.PIPE, check=True
    ).stdout


def compiled(versions: dict[str, str], scratch: Path) -> str:
    """The pinned requirements, resolved for PyPI's build of torch."""
    pins = scratch / "tested.txt"
    # `===` compares text, so that 2.13.0 is not 2.13.0+cpu.
    pins.write_text("".join(f"{name}==={version.split('+')[0]}\n" for name, version in versions.items()))
    return pip_tool(
        "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe", "--no-header", "--no-annotate",
        "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--strip-extras",
        f"--constraint={pins}", f"--cache-dir={scratch}", "--output-file=-", "-",
        given="\n".join(["pip", *requirements(EXTRAS)]),
    )  # fmt: skip


def torch_hashes(version: str, python: str) -> set[str]:
    """SHA-256 of PyPI's build of torch, and of the build that pip prefers here, for a version of Python."""
    options = [
        "install",
        "--dry-run",
        "--quiet",
        "--ignore-installed",
        "--no-deps",
        "--only-binary=:all:",
        "--report=-",
    ]
    reports = [
        json.loads(pip_tool("pip", *options, f"--python-version={python}", f"torch{equals}{version}"))
        for equals in ("===", "==")
    ]
    return {
        entry["download_info"]["archive_info"]["hashes"]["sha256"] for report in reports for entry in report["install"]
    }


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        installed = tested_versions()
        text = compiled(installed, Path(scratch))
    torch = installed["torch"].split("+")[0]
    hashes = sorted(set.union(*(torch_hashes(torch, python) for python in PYTHONS)))
    lines = " \\\n".join([f"torch=={torch}", *(f"    --hash=sha256:{value}" for value in hashes)])
    text = re.sub(r"^torch==.*(\n .*)*", lambda _: lines, text, flags=re.MULTILINE)
    (ROOT / "constraints.txt").write_text(HEADER + text)
