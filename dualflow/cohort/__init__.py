"""The embedded cohort: a BIDS dataset with known truth, simulated from template anatomy and regional uptake."""

from dualflow.cohort.anatomy import anatomy
from dualflow.cohort.bids import dataset_files, require_own, subject_files, truth_root, write_dataset, write_subject
from dualflow.cohort.laws import LAWS
from dualflow.cohort.people import Person, participants
from dualflow.cohort.pet_scanner import PET_AFFINE, draw_pet, expected_pet
from dualflow.cohort.uptake import uptake_table

__all__ = [
    "LAWS", "PET_AFFINE", "Person", "anatomy", "dataset_files", "draw_pet", "expected_pet", "participants",
    "require_own", "subject_files", "truth_root", "uptake_table", "write_dataset", "write_subject",
]  # fmt: skip
