"""Writing of the cohort as a BIDS dataset, with its ground truth in the derivative dataset `derivatives/truth`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from threadpoolctl import threadpool_limits

from dualflow.arrays import Singles
from dualflow.cohort.anatomy import Affine, anatomy, best_affine
from dualflow.cohort.laws import LAWS, effect_table
from dualflow.cohort.people import Person
from dualflow.cohort.pet_scanner import Pet, acquire_pet
from dualflow.cohort.scanner import SCANNERS, acquire_t1, deformation_field
from dualflow.cohort.uptake import regions
from dualflow.commit import commit_json, commit_text, committing
from dualflow.errors import DataError
from dualflow.imaging.sidecar import PROGRAM
from dualflow.layout import TEMPLATE_SPACE, Scan, bids_path, sidecar_path
from dualflow.modalities import MODALITIES

BIDS_VERSION = "1.10.0"
NAME = "dualflow embedded cohort"
"""Name of the dataset in its description."""
_T1W, _FDG = MODALITIES["T1w"], MODALITIES["FDG"]


def truth_root(out: Path) -> Path:
    """Folder of the cohort's ground truth, a BIDS derivative dataset below `out`."""
    return out / "derivatives" / "truth"


def require_own(out: Path) -> None:
    """Check that a folder holds nothing, or a cohort: writing one replaces files such as participants.tsv.

    Raises:
        DataError: it holds something else.
    """
    description = out / "dataset_description.json"
    if description.is_file():
        with suppress(ValueError, AttributeError):  # not JSON, or no object
            if json.loads(description.read_text()).get("Name") == NAME:
                return
    # A cohort that was interrupted has no description yet.
    of_cohort = re.compile(r"sub-C\d+|derivatives|\..*")
    others = sorted(entry.name for entry in out.glob("*") if not of_cohort.fullmatch(entry.name))
    if others:
        raise DataError(f"{out}: holds {', '.join(others[:5])}, and is no cohort of dualflow; choose a new folder")


def write_subject(out: Path, person: Person) -> None:
    """Simulate one person and write T1w, PET, sidecars and truth; the same person gives the same bytes.

    Args:
        out: root of the BIDS dataset.
        person: determines everything that is written.
    """
    # The order of BLAS sums, and so the last bit, depends on the number of threads.
    with threadpool_limits(1, user_api="blas"):
        body = anatomy(person)
        t1, affine, brain_ml = acquire_t1(person, body)
        pet = acquire_pet(person, body)
        linear = best_affine(body)
        field, lattice_affine = deformation_field(body, affine, t1.shape, linear)

    scan, truth = Scan(person.label), truth_root(out)
    _write(bids_path(out, scan, _T1W), t1, affine, levels=2000, sidecar=_t1w_sidecar(person))
    measured = bids_path(out, scan, _FDG)
    if person.has_pet:
        _write(measured, pet.measured, pet.affine, levels=8000, sidecar=_pet_sidecar(person, pet))
    else:  # an earlier cohort may have had it
        for file in (measured, sidecar_path(measured)):
            file.unlink(missing_ok=True)
    metadata = {
        "TargetToSource": pet.to_t1.tolist(),
        "SourceToTemplate": linear.tolist(),
        "BrainVolume": round(brain_ml, 1),
        "BlurFWHM": round(pet.blur, 3),
    }
    for desc, volume in (("noisefree", pet.noisefree), ("expected", pet.expected)):
        sidecar = {**_TRUTH_SIDECAR, "Description": _DESCRIPTIONS[desc], **(metadata if desc == "noisefree" else {})}
        _write(bids_path(truth, scan, _FDG, desc=desc), volume, pet.affine, levels=30000, sidecar=sidecar)
    path = bids_path(truth, scan, _T1W, suffix="xfm", space=TEMPLATE_SPACE, desc="residual")
    _write(path, np.moveaxis(field, 0, -1)[..., None, :], lattice_affine, levels=30000, sidecar=None, intent="vector")


def subject_files(out: Path, person: Person) -> list[Path]:
    """All files of `write_subject`, sorted."""
    folders = (out / Scan(person.label).folder, truth_root(out) / Scan(person.label).folder)
    return sorted(file for folder in folders for file in folder.rglob("[!.]*") if file.is_file())


def dataset_files(out: Path) -> list[Path]:
    """All files of `write_dataset`, sorted."""
    return sorted(file for folder in (out, truth_root(out)) for file in folder.iterdir() if file.is_file())


def write_dataset(out: Path, people: Sequence[Person]) -> None:
    """Write the files of the whole dataset: descriptions, participants and truth tables.

    Args:
        out: root of the BIDS dataset, whose subjects are written already.
        people: all members of the cohort, of one law.
    """
    truth = truth_root(out)
    commit_json(out / "dataset_description.json", _description("raw", NAME))
    commit_text(out / "README.md", _README)
    commit_json(out / "participants.json", _COLUMNS)
    _write_table(out / "participants.tsv", pd.DataFrame([_row(person) for person in people]))

    commit_json(truth / "dataset_description.json", _description("derivative", f"{NAME}: truth"))
    law = LAWS[people[0].law]
    commit_text(truth / "README.md", _TRUTH_README + law.note)
    commit_text(truth / ".bidsignore", "*_xfm.nii.gz\nuptake.tsv\nexpected_uptake.tsv\neffects.tsv\npeople.tsv\n")
    findings = [anatomy(person).findings for person in people]
    tables = {
        "uptake": list(map(law.uptake, people, findings)),
        "expected_uptake": list(map(law.expected, people, findings)),
    }
    for name, values in tables.items():
        table = pd.DataFrame(np.stack(values), columns=list(regions().index)).round(5)
        table.insert(0, "participant_id", [f"sub-{person.label}" for person in people])
        _write_table(truth / f"{name}.tsv", table)
    _write_table(truth / "effects.tsv", effect_table(law).round(5).reset_index())
    traits = map(law.traits, people, findings)
    rows = [{**_true_row(person), **more} for person, more in zip(people, traits, strict=True)]
    _write_table(truth / "people.tsv", pd.DataFrame(rows))


def _row(person: Person) -> dict[str, Any]:
    """A person's row of participants.tsv, where some values are not reported."""
    row = {"age": person.age, "sex": person.sex, "diagnosis": person.diagnosis, "site": person.site}
    reported = {column: "n/a" if column in person.unreported else value for column, value in row.items()}
    return {"participant_id": f"sub-{person.label}", **reported}


def _true_row(person: Person) -> dict[str, Any]:
    return {
        "participant_id": f"sub-{person.label}",
        "age": person.age,
        "sex": person.sex,
        "diagnosis": person.diagnosis,
        "site": person.site,
        "atrophy": round(person.atrophy, 4),
        "metabolism": round(person.metabolism, 4),
    }


def _write(
    path: Path,
    values: Singles,
    affine: Affine,
    *,
    levels: int,
    sidecar: Mapping[str, Any] | None,
    intent: str = "none",
) -> None:
    """Write int16 NIfTI with a slope, so that `levels` steps span the range, and the sidecar beside it."""
    slope = float(np.abs(values).max()) / levels
    voxels: npt.NDArray[np.int16] = np.rint(values / np.float32(slope)).astype(np.int16)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    image.header.set_intent(intent)
    # The sform repeats the rounded quaternion, so that both agree.
    image.set_qform(affine, 1)
    image.set_sform(image.get_qform(), 1)
    with committing(path) as temp:
        image.to_filename(temp)
    if sidecar is not None:
        commit_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    commit_text(path, table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))


def _t1w_sidecar(person: Person) -> dict[str, Any]:
    scanner = SCANNERS[person.site]
    return {
        "Modality": "MR",
        "MagneticFieldStrength": scanner.field,
        "Manufacturer": "Simulated",
        "ManufacturersModelName": scanner.model,
        "PulseSequenceType": "simulated T1-weighted gradient echo",
    }


def _pet_sidecar(person: Person, pet: Pet) -> dict[str, Any]:
    return {
        "Modality": "PT",
        "Manufacturer": "Simulated",
        "ManufacturersModelName": SCANNERS[person.site].model,
        "Units": "Bq/mL",
        "BodyPart": "BRAIN",
        "TracerName": "FDG",
        "TracerRadionuclide": "F18",
        "InjectedRadioactivity": pet.dose,
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "BodyWeight": pet.weight,
        "BodyWeightUnits": "kg",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:00:00",
        "ScanStart": 1800,
        "InjectionStart": 0,
        "FrameTimesStart": [1800],
        "FrameDuration": [1200],
        "AcquisitionMode": "static",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "simulated",
        "ReconMethodParameterLabels": ["none"],
        "ReconMethodParameterUnits": ["none"],
        "ReconMethodParameterValues": [0],
        "ReconFilterType": "none",
        "AttenuationCorrection": "simulated without attenuation",
    }


def _description(kind: str, name: str) -> dict[str, Any]:
    return {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": kind,
        "License": "CC0",
        "Authors": ["dualflow"],
        "GeneratedBy": [{**PROGRAM, "Description": "simulation: cohort"}],
    }


_TRUTH_SIDECAR: Mapping[str, Any] = {"SkullStripped": False, "Units": "Bq/mL", "TracerName": "FDG", "Simulated": True}
_DESCRIPTIONS: Mapping[str, str] = {
    "noisefree": "The person's own uptake through their own scanner blur, without noise.",
    "expected": "The person's anatomy with the uptake expected for age, sex, diagnosis and tissue loss, and the "
    "scanner's mean blur: the best possible prediction.",
}
_COLUMNS: Mapping[str, Any] = {
    "age": {"Description": "Age at scan", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "diagnosis": {
        "Description": "Simulated clinical diagnosis",
        "Levels": {"CN": "cognitively normal", "MCI": "mild cognitive impairment", "AD": "Alzheimer's dementia"},
    },
    "site": {"Description": "Simulated scanner pair", "Levels": {"A": "3 T, sharper PET", "B": "1.5 T, softer PET"}},
}
_README = """# dualflow embedded cohort

Simulated people, not patients. Anatomy: the ICBM152 2009a template, deformed and aged. FDG uptake: Desikan-Killiany
regional figures fitted to a published group template (Della Rosa et al. 2014), with invented effects of age, sex,
diagnosis and tissue loss and invented variation between people. T1w and PET lie in different poses and on different
grids, from two simulated sites that differ in MR contrast, noise and PET resolution. A few values are missing (`n/a`).

The noise-free and the expected PET, the transforms and the effects are known: see `derivatives/truth`.
No clinical conclusion can be drawn from these data.
"""
_TRUTH_README = """# Ground truth of the simulated cohort

- `desc-noisefree`: PET without noise. Its sidecar holds `TargetToSource` (4x4, points of the PET world to the T1
  world, RAS mm, exact), `SourceToTemplate` (4x4, points of the T1 world to the template world, best affine of the
  whole map over the brain), `BrainVolume` (mL) and `BlurFWHM` (mm).
- `desc-expected`: PET with random variation between people at its mean; same scale as `desc-noisefree`.
- `*_desc-residual_xfm.nii.gz`: displacement in mm that the best affine leaves, on the T1 world:
  template point = SourceToTemplate(x) + displacement(x).
- `uptake.tsv`, `expected_uptake.tsv`: uptake of pure tissue by region (1 = mean grey matter of the base figures).
- `effects.tsv`: change of the mean log uptake by region with age, diagnosis and sex, at mean tissue loss.
- `people.tsv`: all traits, with none missing, and the severities of atrophy and hypometabolism.
"""
