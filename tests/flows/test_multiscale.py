"""Latents of all levels in one row, and back."""

from __future__ import annotations

import torch

from dualflow.flows.multiscale import joined, level_channels, level_shapes, separated


def test_joined_latents_are_separated_again():
    """The coarsest level comes first; sizes are those of a grid with three different edges."""
    shape, levels = (8, 12, 4), 2
    sizes = zip(level_channels(2, levels), level_shapes(shape, levels), strict=True)
    latents = [torch.randn(3, channels, *grid) for channels, grid in sizes]
    row = joined(latents)
    assert row.shape == (3, 2 * 8 * 12 * 4)
    assert torch.equal(row[:, : latents[-1][0].numel()], latents[-1].flatten(1))
    for latent, again in zip(latents, separated(row, 2, shape, levels), strict=True):
        assert torch.equal(latent, again)
