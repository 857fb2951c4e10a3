"""Completed region tables of one study by each way of filling the holes, for the benchmark of imputation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dualflow.arrays import Bools, Doubles
from dualflow.imputation.proper_draws import proper_draws
from dualflow.imputation.region_values import RegionValues, chosen_scans
from dualflow.imputation.replicates import Replicates, replicate, subject_groups

ALL = "all measured"
"""The method that knows every target: what the others try to recover."""
PROPER, FIXED, SAMPLES, CONSTANT, SINGLE = (
    "proper draws", "fixed parameters", "model samples", "constant-spread draws", "single imputation",
)  # fmt: skip
JACKKNIFE, TRUE_LAW = f"{PROPER}, jackknife", "draws of the true law"


def fillings(values: Sequence[RegionValues], observed: Bools, terms: pd.DataFrame, seed: int) -> Mapping[str, Doubles]:
    """Return the draws `[M, Q, R]` of the scans that are not observed, by method.

    `model samples` are those of the model as it is. `constant-spread draws` add independent noise of one size to its
    predictions. `single imputation` takes the prediction. `fixed parameters` are proper draws without the uncertainty
    of the regression's parameters.

    Args:
        values: of N scans.
        observed: scans whose measured values are known `[N]`.
        terms: design matrix of the imputation `[N, K]`.
        seed: of the independent noise.
    """
    measured = np.stack([one.measured for one in values])[observed]
    known, missing = chosen_scans(values, terms, observed), chosen_scans(values, terms, ~observed)
    spread = np.sqrt(np.nanmean(np.square(measured - known.prediction)))
    noise = np.random.default_rng(seed).normal(0, spread, missing.noise.shape)
    return {
        PROPER: proper_draws(measured, known, missing, seed),
        FIXED: proper_draws(measured, known, missing, seed, proper=False),
        SAMPLES: missing.prediction + missing.noise,
        CONSTANT: missing.prediction + noise,
        SINGLE: np.repeat(missing.prediction[None], 2, axis=0),
    }


def study_replicates(
    values: Sequence[RegionValues], observed: Bools, terms: pd.DataFrame, seed: int
) -> Replicates | None:
    """Return the replicates of proper draws, without each of the N people; None if a term needs one of them."""
    measured = np.stack([one.measured for one in values])
    known, missing = chosen_scans(values, terms, observed), chosen_scans(values, terms, ~observed)
    people = subject_groups([f"{index:04d}" for index in range(len(values))])
    return replicate(measured[observed], known, missing, observed, ~observed, people, seed)
