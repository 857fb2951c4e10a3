"""Harmonise: a source's intensities brought to the training people's, without knowledge of its modality.

Two steps, each used only if it reduces the cross-fitted error. Histogram matching (Nyul & Udupa 1999) maps a scan's
quantiles onto the mean quantiles of the training scans. The local level divides out a smooth field: the local mean of
the voxels in one band of intensities, relative to their mean over the brain. In a T1-weighted image the bright band is
white matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualflow.flows.voxel_features import blur, foreground

LEVELS = torch.linspace(0.02, 0.98, 33)
"""Probabilities of the quantiles that describe a histogram."""
FIELD = 5.0
"""Smoothing width of the local level, in voxels."""
SOFTNESS = 0.04
"""Width of a band's edges, in units of the intensity range between the outer quantiles."""
SHRINKAGE = 0.02
"""Share of a neighbourhood in the band at which the local level is half the brain's."""
FIELD_BOUNDS = (0.5, 2.0)
ITERATIONS = 2


class Harmonisation(NamedTuple):
    """Steps of a harmonisation.

    Attributes:
        histogram: whether quantiles are mapped onto the training people's.
        band: probabilities of the quantiles that bound the band of the local level; None for no local level.
    """

    histogram: bool
    band: tuple[float, float] | None = None


HARMONISATIONS = (
    Harmonisation(False),
    Harmonisation(True),
    Harmonisation(True, (0.65, 1.0)),
    Harmonisation(True, (0.3, 0.7)),
    Harmonisation(True, (0.0, 0.35)),
)
"""Candidates: none, histogram alone, and histogram with the local level of the bright, middle or dark band."""


class Harmonise(nn.Module):
    """Harmonises each channel of a source by its own row of HARMONISATIONS.

    Args:
        channels: channels of the source.
    """

    choice: Tensor
    raw: Tensor
    levelled: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("choice", torch.zeros(channels, dtype=torch.long))
        self.register_buffer("raw", torch.zeros(channels, len(LEVELS)))
        self.register_buffer("levelled", torch.zeros(channels, len(LEVELS)))

    def fit(self, sources: Iterable[Tensor], choice: Iterable[int]) -> Harmonise:
        """Set the choice of each channel, and the mean quantiles of the training sources `[C, D, H, W]`.

        Quantiles of a source are the only thing that is learnt, so a person's own share in their reference is 1 / N.
        """
        self.choice.copy_(torch.tensor(list(choice)))
        sources = list(sources)
        self.raw.copy_(torch.stack([quantiles(source) for source in sources]).mean(dim=0))
        self.levelled.copy_(torch.stack([quantiles(self._level(source)) for source in sources]).mean(dim=0))
        return self

    def forward(self, source: Tensor) -> Tensor:
        """Return the harmonised source `[N, C, D, H, W]`, 0 outside the brain mask."""
        return torch.stack([self.scan(volume)[0] for volume in source.float()])

    def scan(self, source: Tensor, detail: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Harmonise one source and its detail, `[C, D, H, W]` each; None stays None.

        The harmonised detail is half the distance between the harmonised intensities one detail above and below.
        """
        if not any(HARMONISATIONS[int(row)].histogram for row in self.choice):
            return source, detail
        fields, inside = self._fields(source), foreground(source[None])[0, 0]
        at = quantiles(source / fields, inside)

        def harmonised(intensity: Tensor) -> Tensor:
            flat = intensity / fields
            return torch.stack(
                [
                    mapped(flat[channel], at[channel], self.levelled[channel]) * inside
                    if HARMONISATIONS[int(row)].histogram
                    else intensity[channel]
                    for channel, row in enumerate(self.choice)
                ]
            )

        if detail is None:
            return harmonised(source), None
        return harmonised(source), (harmonised(source + detail) - harmonised(source - detail)) / 2

    def _level(self, source: Tensor) -> Tensor:
        """Divide out the local level of every channel that asks for it, `[C, D, H, W]`."""
        return source / self._fields(source)

    def _fields(self, source: Tensor) -> Tensor:
        """Return the local level of every channel that asks for it, and 1 for the others, `[C, D, H, W]`."""
        inside = foreground(source[None])[0, 0]
        bands = [HARMONISATIONS[int(row)].band for row in self.choice]
        return torch.stack(
            [
                torch.ones_like(image) if band is None else self._field(image, inside, band, curve)
                for image, band, curve in zip(source, bands, self.raw, strict=True)
            ]
        )

    def _field(self, image: Tensor, inside: Tensor, band: tuple[float, float], curve: Tensor) -> Tensor:
        """Return the level of a channel around each voxel, relative to that of the brain, `[D, H, W]`."""
        width = SOFTNESS * (curve[-1] - curve[0]).clamp_min(1e-6)
        field = torch.ones_like(image)
        for _ in range(ITERATIONS):
            flat = image / field
            matched = mapped(flat, quantiles(flat[None], inside)[0], curve)
            weight = inside.float()
            if band[0] > 0:
                weight = weight * torch.sigmoid((matched - _quantile(curve, band[0])) / width)
            if band[1] < 1:
                weight = weight * torch.sigmoid((_quantile(curve, band[1]) - matched) / width)
            average = (weight * image).sum() / weight.sum().clamp_min(1e-6)
            local = (blur(weight * image, FIELD) + SHRINKAGE * average) / (blur(weight, FIELD) + SHRINKAGE)
            field = (local / average.clamp_min(1e-6)).clamp(*FIELD_BOUNDS)
        return field


def quantiles(source: Tensor, inside: Tensor | None = None) -> Tensor:
    """Return the quantiles of each channel of `[C, D, H, W]` inside the brain mask, `[C, Q]`; zeros without a brain."""
    inside = foreground(source[None])[0, 0] if inside is None else inside
    values = source[:, inside].float()
    if not values.shape[1]:
        return values.new_zeros(len(source), len(LEVELS))
    return torch.quantile(values, LEVELS.to(values.device), dim=1).T


def _quantile(curve: Tensor, level: float) -> Tensor:
    """Return the intensity at one probability, linear between the quantiles `[Q]`."""
    return mapped(torch.tensor(level, device=curve.device), LEVELS.to(curve.device), curve)


def mapped(values: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """Map values by the monotone function with `to[q]` at `at[q]`: linear between, shifted by the ends outside."""
    at, to = at.to(values), to.to(values)
    right = torch.searchsorted(at.contiguous(), values.contiguous()).clamp(1, len(at) - 1)
    low, high = at[right - 1], at[right]
    share = (values - low) / (high - low).clamp_min(1e-6)
    inner = torch.lerp(to[right - 1], to[right], share.clamp(0, 1))
    return inner + (values - at[-1]).clamp_min(0) - (at[0] - values).clamp_min(0)
