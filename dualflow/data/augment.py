"""Changes of a training pair that keep it a pair: moved as one, and the source alone made brighter or darker."""

from __future__ import annotations

from functools import partial
from math import radians
from typing import Any

import numpy as np
import torch

from dualflow.config import AugmentConfig
from dualflow.data.dataset import Item

IMAGES, LABELS = ("source", "target", "mean"), ("mask", "shown")


class Augment:
    """Random changes of scans, by MONAI: each is a function of the seed it is given.

    Source, target, mean and mask move together. Bias field and gamma, by which scanners differ, are the source's alone:
    a target in SUVR means what it says.

    Args:
        config: how much.
    """

    def __init__(self, config: AugmentConfig) -> None:
        # An import of seconds, only where it is asked for.
        from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandBiasFieldd
        from monai.utils import convert_to_tensor

        self.config, self.plain = config, partial(convert_to_tensor, track_meta=False)
        # Moving interpolates, even if by nothing.
        self.moves = bool(config.rotation_deg or config.shift_voxels or config.scale)
        angle = radians(config.rotation_deg)
        self.move = RandAffined(
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
        self.shade = Compose(
            [
                RandBiasFieldd(keys=["source"], coeff_range=(-config.bias, config.bias), prob=1.0),
                RandAdjustContrastd(keys=["source"], gamma=gamma, prob=1.0),
            ]
        )

    def __call__(self, item: Item, seed: tuple[int, ...]) -> Item:
        """The scan changed, or with probability 1 - p as it is."""
        state = np.random.default_rng(seed)
        if state.random() >= self.config.probability:
            return item
        for transform in (self.move, self.shade):
            transform.set_random_state(seed=int(state.integers(2**32)))
        labels = {"mask": item["mask"].float(), "shown": (item["source"] != 0).float()}
        moved: dict[str, Any] = self.move({**item, **labels}) if self.moves else {**item, **labels}
        plain = {name: self.plain(moved[name]) for name in (*IMAGES, *LABELS) if name in moved}
        shaded = self.plain(self.shade({"source": moved["source"]})["source"])
        # A source's background is exactly 0, which a power of intensities that reach below 0 would move.
        source = torch.where(plain.pop("shown") > 0.5, shaded, 0.0)
        return {**item, **plain, "source": source, "mask": plain["mask"] > 0.5}
