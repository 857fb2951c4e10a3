"""What is measured on the validation pairs while a model trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.data.dataset import PairDataset, collate
from dualflow.training.device import device_of
from dualflow.training.distributed import ALONE, Ranks


@torch.no_grad()
def validate(model: nn.Module, pairs: PairDataset, batch_size: int, ranks: Ranks = ALONE) -> dict[str, float]:
    """Means over the pairs, in float32: the model's loss terms, the image error, and what is asked of a flow alone.

    Of a flow: `explained_level_1` .., finest first, the share of the latents' variance that the prior's mean explains
    (mean of the batches' shares), and on the first batch the round-trip error. In evaluation a model adds
    no noise to its targets, so validations compare. Several processes share the batches and get the same means.
    """
    device = device_of(model)
    model.eval()
    sums: dict[str, float] = {}
    for start in range(ranks.rank * batch_size, len(pairs), ranks.count * batch_size):
        batch = collate([pairs[index] for index in range(start, min(start + batch_size, len(pairs)))])
        target, source, side, mask = (batch[name].to(device) for name in ("target", "source", "side", "mask"))
        terms = {name: float(value) for name, value in model(target, source, side, mask).items()}
        image = estimate(model, source, side)
        if hasattr(model, "explained"):
            shares: list[float] = model.explained(target, source, side, mask).tolist()  # type: ignore[operator]
            terms |= {f"explained_level_{level}": share for level, share in enumerate(shares, 1)}
        terms["mae"] = float(((image - target).abs() * mask).sum() / mask.sum())
        correlations = [_pearson(i[m], t[m]) for i, t, m in zip(image, target, mask, strict=True)]
        terms["pearson_r"] = sum(correlations) / len(correlations)
        if start == 0 and hasattr(model, "encode"):
            terms["round_trip"] = round_trip_error(model, target, source, side)
        for name, value in terms.items():
            # the round trip is measured on the first batch only
            share = 1.0 if name == "round_trip" else len(target) / len(pairs)
            sums[name] = sums.get(name, 0.0) + share * value
    return ranks.sums(sums)


def estimate(model: nn.Module, source: Tensor, side: Tensor | None) -> Tensor:
    """The model's one best image, float32."""
    image: Tensor = model.point_estimate(source, side)  # type: ignore[operator]
    return image.float()


def round_trip_error(model: nn.Module, target: Tensor, source: Tensor, side: Tensor | None) -> float:
    """Largest absolute difference between a target and the decode of its encoding, in the target's unit."""
    latents, _ = model.encode(target, source, side)  # type: ignore[operator]
    return float((model.decode(latents, source, side) - target).abs().max())  # type: ignore[operator]


def _pearson(left: Tensor, right: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.flatten().double(), right.flatten().double()]))[0, 1])
