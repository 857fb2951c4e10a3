"""Targets drawn from the true law of a simulated cohort, on the model grid and normalised like measured targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from dualflow import cohort
from dualflow.arrays import Bools, Singles
from dualflow.commands.make_cohort import subjects_of
from dualflow.config import Config
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.imaging.geometry import Volume, smooth
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.pipeline import normalise_on_grid
from dualflow.imaging.record import resample_to_grid
from dualflow.imaging.volume import read_volume
from dualflow.layout import Scan, truth_path
from dualflow.modalities import modality

EXPECTED = "expected"
"""`desc` of the volume of the expected target."""


def people_of(config: Config) -> dict[str, cohort.Person]:
    """The embedded cohort's people by label; none for a study with a dataset."""
    return {person.label: person for person in subjects_of(config)} if config.embedded else {}


def drawn_targets(
    config: Config, scan: Scan, mask: Bools, person: cohort.Person, count: int, rng: np.random.Generator
) -> Iterator[Singles]:
    """Draw targets `[D, H, W]` of a person from p(target | source, side information), in SUVR."""
    to_grid = target_on_grid(config, scan, mask)
    for image in cohort.draw_pet(person, cohort.anatomy(person), count, rng):
        yield to_grid(Volume(image, cohort.PET_AFFINE))


def expected_targets(config: Config, scan: Scan, mask: Bools, people: Iterable[cohort.Person]) -> Iterator[Singles]:
    """Expected targets `[D, H, W]` of one anatomy under the side values of each of `people`, in SUVR."""
    to_grid, people = target_on_grid(config, scan, mask), list(people)
    body = cohort.anatomy(people[0])
    for person in people:
        yield to_grid(Volume(cohort.expected_pet(person, body), cohort.PET_AFFINE))


def attainable_target(config: Config, scan: Scan, mask: Bools) -> Singles | None:
    """Expected target `[D, H, W]` of a scan, in SUVR; None without the truth of a simulated cohort."""
    path = truth_path(config.bids, scan, modality(config.study.target), EXPECTED)
    return target_on_grid(config, scan, mask)(read_volume(path)) if path.is_file() else None


def target_on_grid(config: Config, scan: Scan, mask: Bools) -> Callable[[Volume], Singles]:
    """The function that takes a volume in the world of the scan's target to the model grid, as preprocessing does."""
    record = PreprocessedScan.from_manifest(config.layout, scan).record()
    row, grid = modality(config.study.target), model_grid(config.preprocess)
    added_mm = record["target"].get("pet", {}).get("resolution", {}).get("added_fwhm_mm", 0)

    def to_grid(volume: Volume) -> Singles:
        raw = resample_to_grid(smooth(volume, added_mm), record, grid, world="target", background=np.nan)
        return normalise_on_grid(raw, mask, row, config.preprocess, Path(scan.key))[0]

    return to_grid
