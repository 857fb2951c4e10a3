"""Print what pyproject.toml requires: `python docker/requirements.py [EXTRA ...]`, one requirement per line.

pip checks hashes only for requirements that are no project folder, so these lines are installed before dualflow.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def requirements(extras: list[str]) -> list[str]:
    """Requirements of the build, of the package and of `extras`; an extra that names another has its lines too."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, lines = content["project"], []
    pending = [*content["build-system"]["requires"], *project["dependencies"], f"dualflow[{','.join(extras)}]"]
    for line in pending:
        if nested := re.fullmatch(r"dualflow\[(.*)\]", line):
            pending += [
                entry
                for extra in filter(None, nested[1].split(","))
                for entry in project["optional-dependencies"][extra]
            ]
        else:
            lines.append(line)
    return lines


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
