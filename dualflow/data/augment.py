"""Changes of a training pair that keep it a pair: moved as one, and the source alone made brighter or darker."""

from __future__ import annotations

from math import radians
from typing import Any

import numpy as np

from dualflow.config import AugmentConfig
from dualflow.data.dataset import Item

IMAGES = ("source", "target", "mean")


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

        self.config = config
        angle = radians(config.rotation_deg)
        affine = RandAffined(
            keys=[*IMAGES, "mask"],
            prob=1.0,
            rotate_range=[(-angle, angle)] * 3,
            translate_range=[(-config.shift_voxels, config.shift_voxels)] * 3,
            scale_range=[(-config.scale, config.scale)] * 3,
            mode=["bilinear"] * len(IMAGES) + ["nearest"],
            padding_mode="zeros",
            allow_missing_keys=True,
        )
        gamma = (1 / (1 + config.gamma), 1 + config.gamma)
        self.change = Compose(
            [
                affine,
                RandBiasFieldd(keys=["source"], coeff_range=(-config.bias, config.bias), prob=1.0),
                RandAdjustContrastd(keys=["source"], gamma=gamma, prob=1.0),
            ]
        )

    def __call__(self, item: Item, seed: tuple[int, ...]) -> Item:
        """The scan changed, or with probability 1 - p as it is."""
        state = np.random.default_rng(seed)
        if state.random() >= self.config.probability:
            return item
        self.change.set_random_state(seed=int(state.integers(2**32)))
        mask = item["mask"]
        changed: dict[str, Any] = self.change({**item, "mask": mask.float()})
        plain = {name: changed[name].as_tensor() for name in (*IMAGES, "mask") if name in item}
        return {**item, **plain, "mask": plain["mask"] > 0.5}
