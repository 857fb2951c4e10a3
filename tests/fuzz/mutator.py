"""Seeded damage of bytes: the case of a seed and an index is always the same."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

MAX_BYTES = 1 << 16
NUMBERS = (b"0", b"-1", b"1e999", b"-0.0", b"NaN", b"1e-320", b"255", b"65536", b"2147483648", b"9" * 30, b"9" * 5000,
           b"1.5", b"null", b"true", b'""', b"[]", b"{}")  # fmt: skip
EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80")
Operation = Callable[[random.Random, bytes, int, Sequence[bytes]], bytes]


def damaged(rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes] = (), focus: int = 0) -> bytes:
    """One of `seeds` after one to four operations.

    Args:
        rng: source of the choices.
        seeds: valid contents.
        tokens: words of the format, which are inserted.
        focus: bytes at the start that four of five operations change; 0 changes all alike.
    """
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = min(focus, len(data)) if focus and rng.random() < 0.8 else len(data)
        operation = rng.choice(_OPERATIONS)
        data = operation(rng, data, rng.randrange(end + 1), tokens or seeds)
    return data[:MAX_BYTES]


def _flip(rng: random.Random, data: bytes, at: int, _: Sequence[bytes]) -> bytes:
    return data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]


def _overwrite(rng: random.Random, data: bytes, at: int, _: Sequence[bytes]) -> bytes:
    run = rng.randint(1, 8)
    return data[:at] + (rng.randbytes(run) if rng.random() < 0.5 else rng.choice(EXTREMES) * run) + data[at + run :]


def _delete(rng: random.Random, data: bytes, at: int, _: Sequence[bytes]) -> bytes:
    return data[:at] + data[at + rng.choice((1, 2, 8, 64, len(data))) :]


def _repeat(rng: random.Random, data: bytes, at: int, _: Sequence[bytes]) -> bytes:
    run = data[at : at + rng.choice((1, 4, 32))]
    return data[:at] + run * rng.choice((2, 3, 8, 5000 if rng.random() < 0.1 else 4)) + data[at:]


def _insert(rng: random.Random, data: bytes, at: int, tokens: Sequence[bytes]) -> bytes:
    return data[:at] + rng.choice(tokens) + data[at:]


def _splice(rng: random.Random, data: bytes, at: int, tokens: Sequence[bytes]) -> bytes:
    other = rng.choice(tokens)
    return data[:at] + other[rng.randrange(len(other) + 1) :]


def _renumber(rng: random.Random, data: bytes, at: int, _: Sequence[bytes]) -> bytes:
    """Replace the next number, or the next quoted word."""
    match = re.compile(rb"-?\d[\d.e+-]*|\"[^\"]*\"").search(data, at)
    return data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :] if match else data


_OPERATIONS: tuple[Operation, ...] = (_flip, _overwrite, _delete, _repeat, _insert, _splice, _renumber, _renumber)
