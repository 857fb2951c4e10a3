"""Build hook: the wheel carries Snakefile, pipelines/ and configs/ as dualflow/_workflow.

An editable install has no copy; it uses the files of its checkout.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FOLDERS = {"pipelines": ("*.smk", "*.rst"), "configs": ("*.yaml",)}


def workflow_files() -> list[Path]:
    """The workflow's files, relative to the repository."""
    inside = [
        file
        for folder, patterns in FOLDERS.items()
        for pattern in patterns
        for file in sorted((ROOT / folder).rglob(pattern))
    ]
    return [Path("Snakefile"), *(file.relative_to(ROOT) for file in inside)]


class BuildWithWorkflow(build_py):
    """Copies the workflow into the package after the modules."""

    def run(self) -> None:
        """Build the modules, then copy the workflow."""
        super().run()
        if self.editable_mode:
            return
        for file in workflow_files():
            target = Path(self.build_lib, "dualflow", "_workflow", file)
            self.mkpath(str(target.parent))
            copyfile(ROOT / file, target)

    def get_source_files(self) -> list[str]:
        """The files of a source distribution."""
        return [*super().get_source_files(), *map(str, workflow_files())]


setup(cmdclass={"build_py": BuildWithWorkflow})
