"""Random augmentation of training pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import radians
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualflow.config import AugmentConfig
from dualflow.data.dataset import Item

IMAGES, LABELS = ("source", "target", "mean", "spread"), ("mask", "foreground")


class Augment:
    """Random augmentation of scans; each result is a function of the seed.

    Left and right are exchanged about the midsagittal plane of the model grid, and scans are moved by whole voxels.
    Neither interpolates. The affine transform applies to source, target, mean, spread and mask together. Bias field and
    gamma mimic differences between scanners; they apply to the source only, because the target is quantitative (SUVR).
    Training does not read the detail of a source, which is changed like its images.

    Args:
        config: probabilities and amounts.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.change = _Change(config) if config.probability else None

    def __call__(self, item: Item, seed: tuple[int, ...]) -> Item:
        """Augment a scan, or return it unchanged."""
        rng = np.random.default_rng(seed)
        if rng.random() < self.config.flip:
            item = _each_image(item, lambda image: image.flip(1))
        if any(shifts := _translation(item, self.config.translate, rng)):
            item = _each_image(item, lambda image: image.roll(shifts, (1, 2, 3)))
        if self.change is not None and rng.random() < self.config.probability:
            item = self.change(item, rng)
        return item


def _each_image(item: Item, change: Callable[[Tensor], Tensor]) -> Item:
    """Return a scan whose images and mask are changed."""
    return {**item, **{name: change(item[name]) for name in (*IMAGES, "mask") if name in item}}


def _translation(item: Item, largest: int, rng: np.random.Generator) -> list[int]:
    """Draw a shift of each axis, in voxels; none moves the brain beyond the edge of the grid."""
    inside, shifts = (item["source"] != 0).any(0) | item["mask"][0], list[int]()
    for axis, size in enumerate(inside.shape):
        filled = inside.movedim(axis, 0).flatten(1).any(1).nonzero()
        before, after = (int(filled[0]), size - 1 - int(filled[-1])) if len(filled) else (0, 0)
        shifts.append(int(rng.integers(-min(before, largest), min(after, largest), endpoint=True)))
    return shifts


class _Change:
    """Random affine transform and intensities.

    Args:
        config: amounts.
    """

    def __init__(self, config: AugmentConfig) -> None:
        # MONAI takes seconds to import.
        from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandBiasFieldd
        from monai.utils import convert_to_tensor

        self.to_tensor = partial(convert_to_tensor, track_meta=False)
        # An identity transform would still interpolate.
        self.has_spatial = bool(config.rotation_deg or config.shift_voxels or config.scale)
        angle = radians(config.rotation_deg)
        self.spatial = RandAffined(
            keys=[*IMAGES, *LABELS],
            prob=1.0,
            rotate_range=[(-angle, angle)] * 3,
            translate_range=[(-config.shift_voxels, config.shift_voxels)] * 3,
            scale_range=[(-config.scale, config.scale)] * 3,
            mode=["bilinear"] * len(IMAGES) + ["nearest"] * len(LABELS),
            padding_mode="zeros",
            allow_missing_keys=True,
        )
        gamma = (1 / (1 + config.gamma), 1 + config.gamma)
        self.intensity = Compose(
            [
                RandBiasFieldd(keys=["source"], coeff_range=(-config.bias, config.bias), prob=1.0),
                RandAdjustContrastd(keys=["source"], gamma=gamma, prob=1.0),
            ]
        )

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        for transform in (self.spatial, self.intensity):
            transform.set_random_state(seed=int(rng.integers(2**32)))
        labels = {"mask": item["mask"].float(), "foreground": (item["source"] != 0).float()}
        entries: dict[str, Any] = {**item, **labels}
        entries = self.spatial(entries) if self.has_spatial else entries
        tensors = {name: self.to_tensor(entries[name]) for name in (*IMAGES, *LABELS) if name in entries}
        source = self.to_tensor(self.intensity({"source": entries["source"]})["source"])
        # The source's background is exactly 0, but gamma would shift it because intensities reach below 0.
        inside = tensors.pop("foreground") > 0.5
        source = torch.where(inside, source, 0.0)
        # Interpolation blurs these images over the edge of the brain, where the flow never meets them.
        brain = inside.any(dim=0, keepdim=True)
        tensors |= {name: torch.where(brain, tensors[name], 0.0) for name in ("target", "mean") if name in tensors}
        return {**item, **tensors, "source": source, "mask": tensors["mask"] > 0.5}
