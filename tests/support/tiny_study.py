"""A study of six simulated subjects on an 8 mm grid, and the commands that run it."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
TINY = {
    "study": {"name": "tiny", "side": ["age", "sex", "diagnosis"]},
    "cohort": {"subjects": 6},
    "split": {"validation": 0.2, "test": 0.3},
    "preprocess": {"spacing_mm": 8.0, "shape": [24, 32, 24], "bias_field": False},
    "model": {"preset": "dualflow", "options": {"steps": [1, 1, 1], "hidden": [8, 8, 8], "low_rank": 2}},
    "train": {"steps": 4, "validate_every": 2, "precision": "float32"},
    "baselines": {"models": ["mean_image", "unet"], "steps": 4},
    "convert": {"samples": 2, "keep_samples": 1},
    "evaluate": {"bootstrap": 100, "samples": 4, "background_steps": 2, "stress": 9},
}


def tool(*arguments, folder, **options):
    """Run a Python module as a command in a folder."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONWARNINGS", None)
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, text=True, capture_output=True, check=False,
        timeout=900, **options,
    )  # fmt: skip


def snakemake(folder, *arguments):
    return tool(
        "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "tiny.yaml", *arguments, folder=folder
    )


def run(folder, *arguments):
    return tool("dualflow.cli", "run", "--config", "tiny.yaml", *arguments, folder=folder)


def write_samples(folder):
    """Write six pairs of tiny images and their table `samples.tsv` into a folder; return the names of the images."""
    rows, rng, names = ["subject\tsource\ttarget"], np.random.default_rng(0), []
    for label in "123456":
        pair = [f"subject {label} {role}.nii.gz" for role in ("source", "target")]
        for name in pair:
            nib.save(nib.Nifti1Image(rng.integers(0, 99, (6, 6, 6), np.int16), np.eye(4)), folder / name)
        rows.append("\t".join([label, *pair]))
        names += pair
    (folder / "samples.tsv").write_text("\n".join(rows) + "\n")
    return names


def write_config(folder, values):
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
