"""What a score is: its function, label, unit and direction, for one scan or for a whole study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from dualflow.arrays import Bools, Floats
from dualflow.evaluation.calibration import PredictiveDistribution
from dualflow.imaging.meta_regions import meta_region_members, meta_regions
from dualflow.imaging.regions import RegionMap
from dualflow.modalities import Modality

F = TypeVar("F")


@dataclass(frozen=True)
class Context:
    """Inputs of a metric beside estimate and target.

    Attributes:
        row: the target modality; its window is the data range of PSNR and SSIM.
        regions: the regions on the images' grid.
        voxels: predicted distribution of the voxels in the mask, or None.
        region_means: predicted distribution of each region mean, or None.
        region_samples: region means of joint samples `[K, R]`, or None without samples.
        region_std: predicted standard deviation of each region mean `[R]`, or None.
        std: predicted standard deviation `[D, H, W]`, or None.
        bits: `bits_in_mask` of `likelihood.likelihood`, or None for a model without a density.
        attainable: expected target `[D, H, W]`, or None if unknown.
    """

    row: Modality
    regions: RegionMap
    voxels: PredictiveDistribution | None = None
    region_means: PredictiveDistribution | None = None
    region_samples: Floats | None = None
    region_std: Floats | None = None
    std: Floats | None = None
    bits: float | None = None
    attainable: Floats | None = None

    def meta_region_mean(self, name: str, image: Floats, mask: Bools) -> float | None:
        """Mean of an image `[D, H, W]` over the voxels of a meta-region in the mask.

        None if the mask lacks one of its regions: the level of the others alone would say which one it lacks.
        """
        members = meta_region_members(self.regions.names, {name: meta_regions()[name]})[0] > 0
        means, sizes = self.regions.means(image, mask)[members], self.regions.sizes(mask)[members]
        return float(np.average(means, weights=sizes)) if members.any() and sizes.all() else None

    @property
    def data_range(self) -> float:
        """Width of the modality's window."""
        return self.row.window[1] - self.row.window[0]


MetricFunction = Callable[[Floats, Floats, Bools, Context], float | None]
"""(estimate `[D, H, W]`, target `[D, H, W]`, mask `[D, H, W]`, context) -> value, or None if the metric does not apply,
such as coverage of a model without a spread."""
Statistic = Callable[[Floats, Floats], Floats]
"""(columns of the score table `[N, C]`, weights of its rows `[B, N]`) -> values `[B]`, one per resample."""


Kind = Literal["point estimate", "distribution", "samples", "density"]
Over = Literal["voxels", "regions", "meta-regions", "people"]


@dataclass(frozen=True)
class Measure(Generic[F]):
    """A score with everything that a table or figure needs to show it.

    Attributes:
        function: computes the score.
        label: name in tables and figures.
        unit: unit of the score; `target` is the unit of the modality.
        better: direction of improvement; `ideal` means closer to `ideal`.
        ideal: best value if `better` is `ideal`.
        digits: printed decimals.
        kind: what of a prediction is scored.
        over: what a scan's value is computed over, on the model grid.
        values: range of possible values.
        meaning: definition in the reference; by default the first sentence of the function.
    """

    function: F
    label: str
    unit: Literal["target", "dB", "%", "bits/voxel", ""]
    better: Literal["lower", "higher", "ideal"]
    ideal: float = 0.0
    digits: int = 3
    kind: Kind = "point estimate"
    over: Over = "voxels"
    values: str = "0 to ∞"
    meaning: str = ""

    @property
    def definition(self) -> str:
        """`meaning`, or the first sentence of the function's docstring without the cases that it does not apply to."""
        text = self.meaning or (self.function.__doc__ or "").split("\n\n")[0]
        return " ".join(text.split()).split("; None")[0].rstrip(".")

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of `values` as numbers."""
        low, high = (float(end.replace("∞", "inf")) for end in self.values.split(" to "))
        return low, high

    def loss(self, value: Floats) -> Floats:
        """Convert values to losses; lower is better."""
        return np.asarray(_LOSSES[self.better](value, self.ideal))

    def heading(self, row: Modality) -> str:
        """Label with unit."""
        unit = row.unit if self.unit == "target" else self.unit
        return f"{self.label} ({unit})" if unit else self.label


_LOSSES: dict[str, Callable[[Floats, float], Floats]] = {
    "lower": lambda value, _: value,
    "higher": lambda value, _: -value,
    "ideal": lambda value, ideal: np.abs(value - ideal),
}


@dataclass(frozen=True)
class Metric(Measure[MetricFunction]):
    """A score of one scan: a row of METRICS.

    Attributes:
        slack: column of the score table with how much an upper bound may be too high; '' for an exact score.
    """

    slack: str = ""


@dataclass(frozen=True)
class StudyMetric(Measure[Statistic]):
    """A score of all scans together, which is no mean over scans: a row of STUDY_METRICS.

    Attributes:
        columns: columns of the score table that the function reads.
        by_subject: whether visits of a subject are averaged first.
    """

    columns: tuple[str, ...] = ()
    by_subject: bool = True
