"""Linear algebra that torch or LAPACK leave open: batched solves and determinants, and the signs of eigenvectors.

Solves and determinants are computed one matrix at a time. Torch's batched LU is wrong for matrices of 160 rows or more
on a CPU with more than one thread (torch 2.13 with oneMKL): it returns wrong numbers or an error about pivots. LU of a
single matrix is right.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def solve(matrices: Tensor, right: Tensor) -> Tensor:
    """Solve `A X = B` for each matrix, `[..., T, T]` and `[..., T, M]`."""
    return _map(torch.linalg.solve, matrices, right)


def log_abs_det(matrices: Tensor) -> Tensor:
    """Return `log|det A|` of each matrix, `[..., T, T] -> [...]`."""
    return _map(lambda matrix: torch.linalg.slogdet(matrix)[1], matrices)


def with_fixed_signs(vectors: Tensor) -> Tensor:
    """Return eigenvectors `[N, K]`, in columns, with the sign that makes the largest entry of each positive.

    LAPACK's signs depend on rounding, and with them the samples of a seed.
    """
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * largest.sign()


def _map(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """Apply a function of matrices to each entry of the leading axes."""
    leading = batches[0].shape[:-2]
    flat = [batch.flatten(0, len(leading) - 1) for batch in batches]
    results = torch.stack([function(*matrices) for matrices in zip(*flat, strict=True)])
    return results.view(*leading, *results.shape[1:])
