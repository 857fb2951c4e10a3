"""Condition, the inputs of a conditional flow, and InputCheck, the validation of a model's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dualflow.errors import InputError, ShapeError
from dualflow.flows.multiscale import FlowMaps, level_channels, level_shapes
from dualflow.flows.side_information import side_values


class Condition(NamedTuple):
    """All inputs that condition the target's flow, computed once per batch.

    Attributes:
        mean: `[N, C, D, H, W]`, in the target's unit.
        scale: unit of `target - mean` inside the flow, `[N, 1, D, H, W]`, in the target's unit.
        whitening: context of the flow's FieldWhitening, `[N, NEIGHBOURS + 1, V]`, or None; `repeat` keeps it.
        inside: the subject's brain mask, bool, `[N, 1, D, H, W]`.
        features: one source feature map per level, finest first, `[N, F_l, d_l, h_l, w_l]`.
        maps: source maps for the layers of each step.
        side: embedding `[N, E]`, or None.
        person: person features `[N, F]` of the base, or None.
        source_log_prob: log p(source) in nats `[N]`, None for a source without density and for repeated conditions.
    """

    mean: Tensor
    scale: Tensor
    whitening: Tensor | None
    inside: Tensor
    features: list[Tensor]
    maps: FlowMaps
    side: Tensor | None
    person: Tensor | None
    source_log_prob: Tensor | None

    def repeat(self, count: int) -> Condition:
        """Repeat the conditions `count` times along the batch axis."""
        cache: dict[int, Tensor] = {}

        def repeated(tensor: Tensor) -> Tensor:
            # Layers share maps: each is repeated once.
            if id(tensor) not in cache:
                cache[id(tensor)] = tensor.repeat(count, *[1] * (tensor.dim() - 1))
            return cache[id(tensor)]

        return self._replace(
            mean=repeated(self.mean),
            scale=repeated(self.scale),
            inside=repeated(self.inside),
            features=[repeated(feature) for feature in self.features],
            maps=[[{name: repeated(value) for name, value in step.items()} for step in level] for level in self.maps],
            side=None if self.side is None else repeated(self.side),
            person=None if self.person is None else repeated(self.person),
            source_log_prob=None,
        )


@dataclass(frozen=True)
class InputCheck:
    """Validation of the tensors passed to a model.

    Attributes:
        shape: spatial size `(D, H, W)` of all volumes.
        source_channels: images of the source.
        target_channels: channels of the target.
        side_features: number S of side values per subject.
        levels: levels of the target's flow.
    """

    shape: tuple[int, int, int]
    source_channels: int
    target_channels: int
    side_features: int
    levels: int

    def __call__(
        self,
        like: Tensor,
        source: Tensor,
        side: Tensor | None,
        *,
        target: Tensor | None = None,
        latents: Sequence[Tensor] | None = None,
    ) -> None:
        """Check shape, dtype and values of all inputs; NaN is allowed in `side` alone.

        Args:
            like: a parameter of the model, whose dtype the volumes must have.
            source: `[N, C or 2C, D, H, W]`: images, and the detail of each if the source carries it.
            side: `[N, S]`, numbers of any type, NaN where unknown.
            target: `[N, C, D, H, W]`.
            latents: one per level, finest first.

        Raises:
            InputError: the message names the input, its value, and the remedy.
        """
        self.volume(source, "source")
        values = side_values(side, source, self.side_features)
        if not values.is_meta and bool(values.isinf().any()):
            raise InputError("side information holds infinite values; give finite ones, NaN where a value is unknown")
        _check_values(source, "source", like)
        if not source.is_meta and bool((source[:, self.source_channels :] < 0).any()):
            raise InputError(
                f"source of {source.shape[1]} channels, whose detail is negative; expected {self.source_channels} "
                "images, or as many and then the standard deviation of each within a voxel"
            )
        if target is not None:
            self.volume(target, "target", len(source))
            _check_values(target, "target", like)
        if latents is not None:
            self.latents(latents, len(source))
            for level, latent in enumerate(latents, 1):
                _check_values(latent, f"latent of level {level}", like)

    def volume(self, volume: Tensor, name: str, count: int | None = None) -> None:
        """Check the size of a `source`, `target`, `mean` or `spread` `[N, C, D, H, W]`; N is `count` where given.

        Raises:
            ShapeError: the volume has another size, or the batch is empty.
        """
        channels = {"source": self.source_channels, "spread": 1}.get(name, self.target_channels)
        allowed = (channels, 2 * channels) if name == "source" else (channels,)
        if volume.dim() != 5 or volume.shape[1] not in allowed or tuple(volume.shape[2:]) != self.shape:
            raise ShapeError(
                f"{name} of size {tuple(volume.shape)}, expected (N, {channels}, {', '.join(map(str, self.shape))}); "
                "resample it to the grid the model was built for"
            )
        if not len(volume):
            raise ShapeError(f"{name} holds 0 volumes, expected at least 1; check how the batch was made")
        if count is not None and len(volume) != count:
            raise ShapeError(
                f"{name} holds {len(volume)} volumes, expected {count} as in the source; match the batches"
            )

    def latents(self, latents: Sequence[Tensor], count: int) -> None:
        """Check that there is one latent per level, each of its level's size.

        Raises:
            ShapeError: a latent is missing or has another size.
        """
        if len(latents) != self.levels:
            raise ShapeError(f"{len(latents)} latents for {self.levels} levels; pass the latents that encode returns")
        channels, shapes = level_channels(self.target_channels, self.levels), level_shapes(self.shape, self.levels)
        for level, (latent, width, shape) in enumerate(zip(latents, channels, shapes, strict=True), 1):
            if tuple(latent.shape) != (count, width, *shape):
                raise ShapeError(
                    f"latent of level {level} has size {tuple(latent.shape)}, expected {(count, width, *shape)}; "
                    "pass the latents that encode returns"
                )


def _check_values(tensor: Tensor, name: str, like: Tensor) -> None:
    """Check that a tensor has the dtype of `like` and finite values."""
    if tensor.dtype != like.dtype:
        actual, expected = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, like.dtype))
        raise InputError(
            f"{name} holds {actual}, expected {expected} as the model; convert it with .to(torch.{expected})"
        )
    if not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise InputError(f"{name} holds {count} NaN or infinite values, expected finite ones; replace or mask them")


def check_divisible(shape: Sequence[int], levels: int) -> None:
    """Raise unless every size can be halved `levels` times.

    Raises:
        ShapeError: the message names the nearest valid sizes.
    """
    unit = 2**levels
    if len(shape) != 3 or any(size < unit or size % unit for size in shape):
        larger = tuple(-(-max(size, 1) // unit) * unit for size in shape)
        smaller = tuple(max(size // unit, 1) * unit for size in shape)
        raise ShapeError(
            f"volume of size {tuple(shape)} cannot be halved {levels} times; "
            f"valid sizes are multiples of {unit}, the nearest {smaller} and {larger}"
        )
