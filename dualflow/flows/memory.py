"""What a chain of pieces keeps for the backward pass: every activation, one per step, or its output alone.

`stored` keeps what autograd asks for. `checkpoint` keeps the input of each step and runs the step again (Chen et al.
2016). `reversible` keeps the output of the chain, and recovers each piece's input from its output on the way back
(Gomez et al. 2017): memory does not grow with depth. A coupling's network is run once for both, so the price is one
more evaluation of each in three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dualflow.errors import DriftError
from dualflow.flows.bijection import Bijection, upcast, zero_log_det

Memory = Literal["stored", "checkpoint", "reversible"]
# Numbers of the input that a chain keeps, to hold the recovered input against.
PROBES = 4096
# How far a recovered input may lie from the true one, as a share of its root mean square: beyond it gradients are
# those of another input. Networks that round to bfloat16 may round a recovered input the other way.
DRIFT = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}


class BoundPiece(NamedTuple):
    """One piece of a chain: its context, and whether it is applied backwards."""

    piece: Bijection
    context: Tensor | None
    inverse: bool

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The piece in the chain's direction."""
        found: tuple[Tensor, Tensor] = (self.piece.inverse if self.inverse else self.piece)(x, self.context)
        return found


def run(links: Sequence[BoundPiece], x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the links first to last; return the result and the sum of their log-determinants, `[N]`."""
    log_det = zero_log_det(x)
    for link in links:
        x, term = link.apply(x)
        log_det = log_det + term
    return x, log_det


def run_chain(steps: Sequence[Sequence[BoundPiece]], x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """`run` of all steps' links, keeping for the backward pass what `memory` says.

    Raises:
        DriftError: in the backward pass of `reversible`, what was recovered is not what came in.
    """
    if memory == "stored" or not torch.is_grad_enabled():
        return run([link for step in steps for link in step], x)
    if memory == "reversible":
        return _run_reversible([link for step in steps for link in step], x)
    log_det = zero_log_det(x)
    for step in steps:
        x, term = checkpoint(run, step, x, use_reentrant=False)
        log_det = log_det + term
    return x, log_det


def _run_reversible(links: Sequence[BoundPiece], x: Tensor) -> tuple[Tensor, Tensor]:
    contexts = list({id(link.context): link.context for link in links if link.context is not None}.values())
    parameters = list(dict.fromkeys(p for link in links for p in link.piece.parameters() if p.requires_grad))
    found: tuple[Tensor, Tensor] = _Reversible.apply(links, x, *contexts, *parameters)  # type: ignore[no-untyped-call]
    return found


class _Reversible(torch.autograd.Function):
    """A chain whose inputs are recovered from its output.

    Contexts and parameters are arguments, so that their gradients go the usual way: DistributedDataParallel's hooks and
    gradient accumulation see nothing unusual.
    """

    @staticmethod
    def forward(ctx: Any, links: Sequence[BoundPiece], x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        device = x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        with _autocast(ctx.autocast):
            z, log_det = run(links, x)
        ctx.links, ctx.tensors = links, tensors
        ctx.save_for_backward(z, _probes(x))
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (z, probes), (gradient, of_log_det) = ctx.saved_tensors, gradients
        totals: dict[int, Tensor | None] = dict.fromkeys(map(id, ctx.tensors))
        for link in reversed(ctx.links):
            with torch.enable_grad(), _autocast(ctx.autocast):
                context = None if link.context is None else _leaf(link.context)
                leaves, again, log_det = link.piece.reconstruct(z, context, inverse=link.inverse)
            wanted = [(p, id(p)) for p in link.piece.parameters() if p.requires_grad]
            if context is not None and context.requires_grad:
                wanted.append((context, id(link.context)))
            given = {again: gradient, **({log_det: of_log_det} if log_det.requires_grad else {})}
            inputs = [*leaves, *(tensor for tensor, _ in wanted)]
            found = torch.autograd.grad(list(given), inputs, list(given.values()), allow_unused=True)
            for (_, key), part in zip(wanted, found[len(leaves) :], strict=True):
                before = totals[key]
                totals[key] = part if before is None else before if part is None else before + part
            gradient = torch.cat([_or_zero(part, leaf) for part, leaf in zip(found, leaves, strict=False)], dim=1)
            z = torch.cat([leaf.detach() for leaf in leaves], dim=1)
        _check_drift(z, probes, ctx.autocast)
        return None, gradient, *(totals[id(tensor)] for tensor in ctx.tensors)


def _autocast(state: tuple[str, torch.dtype, bool]) -> torch.autocast:
    """Autocast as it was in the forward pass, for a custom backward runs outside of it.

    Without its cache of rounded weights: one made without a graph would be used again with it, and pass no gradient.
    """
    device, dtype, enabled = state
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _probes(x: Tensor) -> Tensor:
    flat = x.detach().flatten()
    return flat[:: max(1, len(flat) // PROBES)].clone()


_numbers = True


@contextmanager
def without_drift_check() -> Iterator[None]:
    """Within, tensors have sizes but no numbers, as in a forecast of memory: there is no drift to look at."""
    global _numbers
    _numbers = False
    try:
        yield
    finally:
        _numbers = True


def _check_drift(x: Tensor, probes: Tensor, autocast: tuple[str, torch.dtype, bool]) -> None:
    if not _numbers:
        return
    dtype = autocast[1] if autocast[2] else x.dtype
    size = max(1.0, float(upcast(probes).square().mean().sqrt()))  # at temperature 0 a latent is 0
    error = float((upcast(_probes(x)) - upcast(probes)).square().mean().sqrt()) / size
    if not error <= DRIFT[dtype]:  # also if it is not a number
        raise DriftError(
            f"reversible memory: what was recovered in the backward pass differs from the true input by {error:.2g} of "
            f"its size, expected at most {DRIFT[dtype]:g}; use train.memory: checkpoint, or lower the flow's "
            "log_scale_bound"
        )


def set_memory(module: nn.Module, memory: Memory) -> None:
    """Choose what every chain in `module` keeps for the backward pass."""
    for part in module.modules():
        if "memory" in vars(part):
            vars(part)["memory"] = memory
