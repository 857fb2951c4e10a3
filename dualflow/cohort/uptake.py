"""Regional FDG uptake: its mean by age, sex, diagnosis and atrophy, and individual deviations.

The base figures in `fdg_regional_uptake.tsv` are a ridge fit of tissue uptake to an FDG group template (Della Rosa et
al. 2014, A standardized [18F]-FDG-PET template for spatial normalization in statistical parametric mapping of
dementia, Neuroinformatics 12:575-593) over Desikan-Killiany regions; 1 is the mean of pure grey matter. The effects
in `regional_effects.tsv` are invented; their regional pattern follows the FDG literature.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from io import StringIO

import numpy as np
import pandas as pd

from dualflow.arrays import Doubles
from dualflow.cohort.people import METABOLISM_SD, Person, Sex, expected_metabolism
from dualflow.imaging.atlas import desikan_killiany, merged_name, side

CEREBRAL_LOBES = ("frontal", "parietal", "temporal", "occipital")
LIMBIC_TARGETS = ("ctx-posteriorcingulate", "ctx-isthmuscingulate", "ctx-precuneus")
"""Regions whose uptake falls with hippocampal loss."""
# Standard deviations of log uptake between people.
LOBE_SD, HALF_SD, PAIR_SD, REGION_SD, WHITE_SD = 0.045, 0.025, 0.022, 0.020, 0.05


def uptake_table() -> pd.DataFrame:
    """Tissue uptake by region: columns `region` (hemispheres merged) and `tissue_uptake` (mean grey matter = 1)."""
    return _read("fdg_regional_uptake.tsv")


@cache
def regions() -> pd.DataFrame:
    """All regions in label order: name (index), side, lobe, base uptake, and the effect sizes in log uptake."""
    effects = _read("regional_effects.tsv").set_index("region")
    base = uptake_table().set_index("region")["tissue_uptake"]
    names = [name for _, name in sorted(desikan_killiany()[1].items()) if merged_name(name) in effects.index]
    table = effects.loc[[merged_name(name) for name in names]].reset_index(names="merged")
    table["base"] = [base["White-Matter" if name.endswith("White-Matter") else name] for name in table["merged"]]
    table["side"] = [side(name) for name in names]
    table.index = pd.Index(names, name="region")
    return table


def tissue_loss(person: Person) -> Doubles:
    """Fraction of each region's grey matter that is lost [R]: age, disease and individual variation."""
    table = regions()
    rng = person.generator("loss")
    # One hemisphere ages slightly ahead of the other, and the hippocampi vary independently.
    lateral = np.where(table["side"] == "left", 1.0, -1.0) * rng.normal(0, 0.12) * (table["side"] != "")
    pattern = rng.normal(0, 0.025, len(table)) + _spread(table["lobe"], rng, 0.02)
    ageing = ((person.age - 50) / 40) ** 1.3
    mean = table["thinning_age"] * ageing + table["thinning_disease"] * person.atrophy
    loss = np.asarray(mean * (1 + lateral) + pattern * (table["thinning_age"] > 0), dtype=np.float64)
    return np.clip(loss, 0.0, 0.6)


def expected_uptake(person: Person, loss: Doubles) -> Doubles:
    """Uptake of pure tissue [R] predicted by MR and side information, without random deviation."""
    metabolism = expected_metabolism(person.diagnosis, person.atrophy)
    return _uptake(person.age, person.sex, metabolism, loss)


def person_uptake(person: Person, loss: Doubles) -> Doubles:
    """Uptake of pure tissue [R] of a person: the expected uptake with random deviations of lobes and regions."""
    deviation = _deviation(person.generator("uptake"))
    return _uptake(person.age, person.sex, person.metabolism, loss) * np.exp(deviation)


def drawn_uptake(person: Person, loss: Doubles, rng: np.random.Generator) -> Doubles:
    """Draw uptake of pure tissue [R] given what MR and side information show: severity and deviations are random."""
    expected = expected_metabolism(person.diagnosis, person.atrophy)
    metabolism = max(0.0, expected + float(rng.normal(0, METABOLISM_SD)))
    return _uptake(person.age, person.sex, metabolism, loss) * np.exp(_deviation(rng))


def _deviation(rng: np.random.Generator) -> Doubles:
    """Random deviation of log uptake [R]."""
    table = regions()
    half = table["lobe"] + table["side"]
    deviation = (
        _spread(table["lobe"], rng, LOBE_SD)
        + _spread(half, rng, HALF_SD)
        + _spread(table["merged"], rng, PAIR_SD)
        + rng.normal(0, REGION_SD, len(table))
    )
    white = np.asarray(table["lobe"] == "white")
    return np.where(white, _spread(half, rng, 0.015) + rng.normal(0, WHITE_SD), deviation)


def _uptake(age: float, sex: Sex, metabolism: float, loss: Doubles) -> Doubles:
    """Mean uptake: sigmoid in age, saturating in disease (steeper in the young), lowered by remote tissue loss."""
    table = regions()
    early, late = np.tanh((50 - 66) / 16), np.tanh((90 - 66) / 16)
    ageing = (np.tanh((age - 66) / 16) - early) / (late - early)
    disease = (1 - np.exp(-1.6 * metabolism)) / (1 - np.exp(-1.6)) * (1 + 0.35 * np.tanh((70 - age) / 8))
    local = 0.25 * loss**2 / (loss**2 + 0.15)
    log = -table["age"] * ageing - table["disease"] * disease + table["male"] * (sex == "M") - local + _remote(loss)
    return np.asarray(table["base"] * np.exp(log), dtype=np.float64)


def _remote(loss: Doubles) -> Doubles:
    """Effect [R] of remote tissue loss: diaschisis along limbic, thalamocortical and crossed cerebellar paths."""
    table = regions()
    lost = pd.Series(loss, index=table.index)
    effect = np.zeros(len(table))
    for hemisphere, opposite, half in (("left", "right", "lh"), ("right", "left", "rh")):
        name = hemisphere.capitalize()
        limbic = np.tanh(2.5 * lost[f"{name}-Hippocampus"])
        thalamic = np.tanh(4 * lost[f"{name}-Thalamus-Proper"])
        frontal = np.tanh(4 * lost[f"ctx-{half}-superiorfrontal"])
        on_side = np.asarray(table["side"] == hemisphere)
        merged = table["merged"]
        effect -= 0.11 * limbic * on_side * np.asarray(merged.isin(LIMBIC_TARGETS))
        effect -= 0.06 * thalamic * on_side * np.asarray(table["lobe"].isin(["frontal", "parietal"]))
        effect -= 0.08 * frontal * np.asarray((table["side"] == opposite) & (merged == "Cerebellum-Cortex"))
    return effect


def _spread(groups: pd.Series, rng: np.random.Generator, sd: float) -> Doubles:
    """One normal value per group, repeated for every member [R]."""
    codes, names = pd.factorize(groups)
    return np.asarray(rng.normal(0, sd, len(names))[codes], dtype=np.float64)


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(StringIO(files("dualflow.cohort").joinpath(name).read_text()), sep="\t")
