"""Solves and determinants of several matrices, one after the other.

Torch's own LU of several matrices of 160 rows or more at once is wrong on a CPU with more than one thread, silently or
with an error about pivots (torch 2.13 with oneMKL); of a single one it is right.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def solve(matrices: Tensor, right: Tensor) -> Tensor:
    """X of `A X = B` for each of the matrices, `[..., T, T]` and `[..., T, M]`."""
    return _each(torch.linalg.solve, matrices, right)


def log_abs_det(matrices: Tensor) -> Tensor:
    """`log|det A|` of each of the matrices, `[..., T, T] -> [...]`."""
    return _each(lambda matrix: torch.linalg.slogdet(matrix)[1], matrices)


def _each(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    leading = batches[0].shape[:-2]
    flat = [batch.flatten(0, len(leading) - 1) for batch in batches]
    results = torch.stack([function(*some) for some in zip(*flat, strict=True)])
    return results.view(*leading, *results.shape[1:])
