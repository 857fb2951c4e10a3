"""Detectors: one-sided scores of how far a scan's features lie from those of the training people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles, Singles
from dualflow.inference.lesion_map import principal_components, residual
from dualflow.inference.typicality_features import ScanFeatures

CLOUDS = ("quantiles", "texture", "mask")
"""Features that are scored by Mahalanobis' distance."""
BLOCK_COMPONENTS = 40
"""Most principal components of the local contrast."""
_TINY = 1e-9


@dataclass(frozen=True)
class Cloud:
    """Normal distribution of a feature vector, whose covariance is shrunk (Ledoit & Wolf 2004).

    Attributes:
        mean: mean `[F]`.
        sd: standard deviation `[F]`.
        precision: inverse covariance of the standardised features `[F, F]`.
    """

    mean: Singles
    sd: Singles
    precision: Singles

    @classmethod
    def fit(cls, rows: Doubles) -> Self:
        """Fit feature vectors `[N, F]`."""
        from sklearn.covariance import LedoitWolf  # a second to import

        mean, sd = rows.mean(axis=0), rows.std(axis=0) + _TINY
        precision = LedoitWolf(assume_centered=True).fit((rows - mean) / sd).precision_
        mean, sd, precision = (np.asarray(part, np.float32) for part in (mean, sd, precision))
        return cls(mean, sd, precision)

    def score(self, vector: Doubles) -> float:
        """Log of the squared Mahalanobis distance."""
        z = (vector - self.mean.astype(np.float64)) / self.sd
        return float(np.log(max(float(z @ self.precision.astype(np.float64) @ z), _TINY)))


@dataclass(frozen=True)
class Detectors:
    """All detectors, fitted on the features of a group of people.

    Attributes:
        clouds: distribution of each feature vector of CLOUDS.
        block_mean: mean local contrast `[B]`.
        block_components: principal components of the local contrast `[K, B]`.
        mean_image: mean of the coarse images `[D, H, W]`.
        support: voxels in the brain of most people `[D, H, W]`.
    """

    clouds: dict[str, Cloud]
    block_mean: Singles
    block_components: Singles
    mean_image: Singles
    support: Bools

    @classmethod
    def fit(cls, people: Sequence[ScanFeatures]) -> Self:
        """Fit the features of a group of people."""
        rows = {name: np.stack([one.vectors[name] for one in people]) for name in (*CLOUDS, "local_contrast")}
        mean, components = principal_components(rows["local_contrast"], BLOCK_COMPONENTS)
        return cls(
            {name: Cloud.fit(rows[name]) for name in CLOUDS},
            mean.astype(np.float32),
            components.astype(np.float32),
            np.mean([one.image for one in people], axis=0, dtype=np.float32),
            np.mean([one.inside for one in people], axis=0) > 0.5,
        )

    def __call__(self, features: ScanFeatures) -> dict[str, float]:
        """Return the score of each detector; higher is less typical.

        `local_contrast` is the log energy that the components leave. `contrast` is the negative correlation with the
        mean image: on real scans about -0.6 for the training contrast, and 0.15 for the inverse one.
        """
        scores = {name: cloud.score(features.vectors[name]) for name, cloud in self.clouds.items()}
        rest = residual(features.vectors["local_contrast"], self.block_mean, self.block_components)
        inside = features.inside & self.support
        return {
            **scores,
            "local_contrast": float(np.log(max(rest @ rest, _TINY))),
            "contrast": -_correlation(features.image[inside], self.mean_image[inside]),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        clouds = {
            f"{name}.{part}": getattr(cloud, part)
            for name, cloud in self.clouds.items()
            for part in ("mean", "sd", "precision")
        }
        names = ("block_mean", "block_components", "mean_image")
        return clouds | {name: getattr(self, name) for name in names} | {"support": self.support.astype(np.float16)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The detectors with these arrays."""
        clouds = {name: Cloud(*(arrays[f"{name}.{part}"] for part in ("mean", "sd", "precision"))) for name in CLOUDS}
        names = ("block_mean", "block_components", "mean_image")
        return cls(clouds, support=arrays["support"] > 0, **{name: arrays[name] for name in names})


def _correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Correlation of two vectors; 0 if either is constant or empty."""
    if len(first) < 2 or not (first.std() > 0 and second.std() > 0):
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
