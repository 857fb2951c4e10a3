"""People with a lesion, in which the target is less certain."""

from __future__ import annotations

import torch

SHAPE = (16, 16, 16)


def people(count: int, seed: int = 0) -> list[dict]:
    """Return people whose error is twice as large in a lesion, and larger by exp(0.4 side) everywhere."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        source = torch.full((1, *SHAPE), 0.6) + 0.02 * torch.randn(1, *SHAPE, generator=generator)
        x, y, z = (int(start) for start in torch.randint(2, 9, (3,), generator=generator))
        lesion = torch.zeros(1, *SHAPE, dtype=torch.bool)
        lesion[:, x : x + 5, y : y + 5, z : z + 5] = True
        source[lesion] = 0.15
        side = torch.randn(1, generator=generator)
        spread = 0.1 * (0.4 * side).exp() * torch.where(lesion, 2.0, 1.0)
        target = 1 + spread * torch.randn(1, *SHAPE, generator=generator)
        items.append(
            {
                "source": source,
                "target": target,
                "mean": torch.ones(1, *SHAPE),
                "mask": torch.ones(1, *SHAPE, dtype=torch.bool),
                "side": side,
                "lesion": lesion,
                "scan": f"sub-{index}",
            }
        )
    return items
