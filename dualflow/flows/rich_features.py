"""RichFeatures: tissue features of a harmonised source, its contrast, and abnormal tissue near, around and remote."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.abnormality import NEAR, Abnormality, hemispheric_load, surroundings
from dualflow.flows.harmonise import LEVELS, Harmonise, quantiles
from dualflow.flows.voxel_features import TISSUE_CENTRES, TissueFeatures, blur, foreground

ABNORMAL = 6
"""Number of features of abnormality."""
HIGH = (4, 5)
"""Tissue classes of the first source above grey matter."""
MIN_SD = 1e-3
"""Smallest standard deviation by which the contrast score is divided; intensities lie in 0..1."""


class RichFeatures(nn.Module):
    """TissueFeatures on a harmonised source, with features of the scan's contrast and of abnormal tissue.

    The tissue maps read the detail of the source if it reduces the cross-fitted error.

    The contrast score is the first principal component of the training scans' quantiles before harmonisation; alone and
    times the tissue maps it corrects what harmonisation leaves. Abnormal tissue acts where it is, on tissue around
    it, and, by the load of each hemisphere, on the own and the opposite side.

    Args:
        shape: the grid, D, H, W.
        channels: channels of the source.
    """

    centre: Tensor
    axis: Tensor
    uses_detail: Tensor

    def __init__(self, shape: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.channels, self.tissue = channels, TissueFeatures()
        self.harmonise = Harmonise(channels)
        self.abnormality = Abnormality(shape, channels)
        self.register_buffer("centre", torch.zeros(channels * len(LEVELS)))
        self.register_buffer("axis", torch.zeros(channels * len(LEVELS)))
        self.register_buffer("uses_detail", torch.zeros((), dtype=torch.bool))

    @property
    def detailed(self) -> bool:
        """Whether the tissue maps read the detail of the source; a fit chooses."""
        return bool(self.uses_detail)

    @property
    def contrast_count(self) -> int:
        """Number of features of the contrast."""
        return 1 + len(TISSUE_CENTRES) * self.channels

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""
        return self.tissue.count(side_features, source_channels) + self.contrast_count + ABNORMAL

    def odd(self, side_features: int, source_channels: int = 1) -> list[int]:
        """Return the positions of the features that a reflection flips: the gradients along axis 0."""
        return self.tissue.odd(side_features, source_channels)

    def fit_contrast(self, rows: Tensor) -> None:
        """Set the contrast score: the first principal component of the scans' quantiles `[N, C * Q]`, of variance 1."""
        centred = rows - rows.mean(dim=0)
        axis = torch.linalg.svd(centred, full_matrices=False).Vh[0]
        axis = axis * axis[axis.abs().argmax()].sign()  # the sign of a singular vector is arbitrary
        self.centre.copy_(rows.mean(dim=0))
        self.axis.copy_(axis / (centred @ axis).std().clamp_min(MIN_SD))

    def contrast(self, source: Tensor) -> Tensor:
        """Return the contrast score of a source `[C, D, H, W]`."""
        return (quantiles(source).flatten() - self.centre) @ self.axis

    def forward(self, source: Tensor, side: Tensor, detail: Tensor | None = None) -> Tensor:
        """Return `[N, P, D, H, W]` from source and detail `[N, C, D, H, W]` and complete side values `[N, S]`."""
        people = []
        for index, (volume, values) in enumerate(zip(source, side, strict=True)):
            harmonised, spread = self.harmonise.scan(volume, None if detail is None else detail[index])
            abnormal = self.abnormality(harmonised, foreground(volume[None])[0, 0])
            people.append(self.person(volume, harmonised, abnormal, values[None], spread))
        return torch.stack(people)

    def person(
        self, source: Tensor, harmonised: Tensor, abnormal: Tensor, side: Tensor, detail: Tensor | None = None
    ) -> Tensor:
        """Return the features of one person, `[P, D, H, W]`.

        Args:
            source: `[C, D, H, W]`.
            harmonised: the same, harmonised.
            abnormal: abnormality map `[D, H, W]`.
            side: complete side values `[1, S]`.
            detail: harmonised detail `[C, D, H, W]`, if the features use it.
        """
        base = self.tissue(harmonised[None], side, None if detail is None else detail[None])[0]
        return torch.cat([base, self.contrast_features(source, base), self.abnormal_features(abnormal, base)])

    def contrast_features(self, source: Tensor, base: Tensor) -> Tensor:
        """Return the contrast score, alone and times the tissue maps, from the features `base` of the tissue."""
        return self.contrast(source) * base[: self.contrast_count]

    def abnormal_features(self, abnormal: Tensor, base: Tensor) -> Tensor:
        """Return the features of an abnormality map `[D, H, W]`."""
        narrow = base[1 : 1 + len(TISSUE_CENTRES)]
        middle, high = (narrow[list(classes)].sum(dim=0) for classes in (self.tissue.grey, HIGH))
        around = surroundings(abnormal)
        same, opposite = (load / (load + self.abnormality.typical_load) for load in hemispheric_load(abnormal))
        return torch.stack(
            [blur(abnormal, NEAR), around, around * middle, around * high, same * middle, opposite * middle]
        )
