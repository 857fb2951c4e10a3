"""Completed region tables of one study by each way of filling the holes, for the benchmark of imputation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.imputation.proper_draws import RegionScans, proper_draws
from dualflow.imputation.region_values import RegionValues

Floats = NDArray[np.float64]
PROPER, FIXED, SAMPLES, CONSTANT, SINGLE = (
    "proper draws", "fixed parameters", "model samples", "constant-spread draws", "single imputation",
)  # fmt: skip


def stack_scans(values: Sequence[RegionValues], terms: pd.DataFrame) -> RegionScans:
    """Return the scans of `values`, which have the rows of `terms`."""
    prediction = np.stack([one.prediction for one in values])
    return RegionScans(terms.reset_index(drop=True), prediction, np.stack([one.noise for one in values], axis=1))


def fillings(
    values: Sequence[RegionValues], observed: NDArray[np.bool_], terms: pd.DataFrame, seed: int
) -> Mapping[str, Floats]:
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
    scans = [one for one, known in zip(values, observed, strict=True) if known]
    holes = [one for one, known in zip(values, observed, strict=True) if not known]
    measured = np.stack([one.measured for one in scans])
    known, missing = stack_scans(scans, terms[observed]), stack_scans(holes, terms[~observed])
    spread = np.sqrt(np.nanmean(np.square(measured - known.prediction)))
    noise = np.random.default_rng(seed).normal(0, spread, missing.noise.shape)
    return {
        PROPER: proper_draws(measured, known, missing),
        FIXED: proper_draws(measured, known, missing, proper=False),
        SAMPLES: missing.prediction + missing.noise,
        CONSTANT: missing.prediction + noise,
        SINGLE: np.repeat(missing.prediction[None], 2, axis=0),
    }
