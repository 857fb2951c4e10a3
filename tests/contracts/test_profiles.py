"""The profile of a SLURM cluster has the memory and time of the jobs that need more than the default."""

import re
from pathlib import Path

import yaml

from dualflow.config import EvaluateConfig

ROOT = Path(__file__).parents[2]
PROFILE = yaml.safe_load((ROOT / "configs/profiles/slurm/profile.v9+.yaml").read_text())
RULES = set(re.findall(r"^ *rule (\w+):", "".join(p.read_text() for p in ROOT.glob("pipelines/*.smk")), re.MULTILINE))


def resources(rule):
    """Memory in MB and minutes of a job."""
    values = PROFILE["default-resources"] | PROFILE["set-resources"].get(rule, {})
    return values["mem_mb"], values["runtime"]


def test_the_rules_exist():
    """Snakemake ignores the resources of a rule that has another name by now."""
    assert set(PROFILE["set-resources"]) <= RULES


def test_every_training_and_evaluation_has_a_row():
    """They grow with the study; a job that ends early is repeated three times and then fails."""
    rules = {rule for rule in RULES if re.match(r"train|fit|evaluate", rule)}
    assert {"train", "fit_closed_form", "evaluate_closed_form"} < rules
    assert rules <= set(PROFILE["set-resources"])


def test_the_exact_bits_of_closed_forms_fit():
    """Four models of 100 scans at the limit of voxels.

    A scan of 10,000 voxels takes 10 s and 3 GB, which grow with the third power and the square; other work takes 2 GB.
    """
    size = EvaluateConfig().closed_form_voxels / 10_000
    memory, minutes = resources("evaluate_closed_form")
    assert memory > 2000 + 3000 * size**2
    assert minutes > 1.5 * 4 * 100 * 10 * size**3 / 60
    assert resources("fit_closed_form")[0] > 1.5 * 2100
