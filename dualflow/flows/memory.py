"""Activation memory of a chain of bijections: stored, checkpointed or reversible.

`stored` keeps all activations, as autograd does. `checkpoint` keeps the input of each step and recomputes the step in
the backward pass (Chen et al. 2016). `reversible` keeps only the output of the chain and recovers each input from its
output (Gomez et al. 2017), so memory does not grow with depth. The backward pass evaluates each network once more, and
those of conditional actnorms and mixings twice.
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
DRIFT_SAMPLES = 4096
"""Number of input values that a reversible chain keeps to check the recovered input."""
DRIFT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest RMS error of a recovered input, relative to the RMS of the input.

Beyond it the gradients belong to another input. A network in bfloat16 may round a recovered input differently.
"""


class BoundPiece(NamedTuple):
    """A bijection with its context and direction.

    Attributes:
        piece: the bijection.
        context: its context, or None.
        inverse: whether `apply` maps latent to data.
    """

    piece: Bijection
    context: Tensor | None
    inverse: bool

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the piece in its direction; return the result and the log-determinant `[N]`."""
        result: tuple[Tensor, Tensor] = (self.piece.inverse if self.inverse else self.piece)(x, self.context)
        return result


def run(pieces: Sequence[BoundPiece], x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the pieces first to last; return the result and the sum of their log-determinants, `[N]`."""
    log_det = zero_log_det(x)
    for piece in pieces:
        x, term = piece.apply(x)
        log_det = log_det + term
    return x, log_det


def run_chain(steps: Sequence[Sequence[BoundPiece]], x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """Apply the pieces of all steps, with the activation memory that `memory` names.

    Raises:
        DriftError: in the backward pass of `reversible`, if the recovered input differs from the true one.
    """
    if memory == "stored" or not torch.is_grad_enabled():
        return run([piece for step in steps for piece in step], x)
    if memory == "reversible":
        return _run_reversible([piece for step in steps for piece in step], x)
    log_det = zero_log_det(x)
    for step in steps:
        x, term = checkpoint(run, step, x, use_reentrant=False)
        log_det = log_det + term
    return x, log_det


def _run_reversible(pieces: Sequence[BoundPiece], x: Tensor) -> tuple[Tensor, Tensor]:
    contexts = list({id(piece.context): piece.context for piece in pieces if piece.context is not None}.values())
    parameters = list(dict.fromkeys(p for piece in pieces for p in piece.piece.parameters() if p.requires_grad))
    result: tuple[Tensor, Tensor] = _Reversible.apply(pieces, x, *contexts, *parameters)  # type: ignore[no-untyped-call]
    return result


class _Reversible(torch.autograd.Function):
    """A chain whose backward pass recovers the inputs from the output.

    Contexts and parameters are arguments, so autograd accumulates their gradients and calls the hooks of
    DistributedDataParallel as usual.
    """

    @staticmethod
    def forward(ctx: Any, pieces: Sequence[BoundPiece], x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        device = x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        with _autocast(ctx.autocast):
            z, log_det = run(pieces, x)
        ctx.pieces, ctx.tensors = pieces, tensors
        ctx.save_for_backward(z, _drift_samples(x))
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (z, samples), (z_grad, log_det_grad) = ctx.saved_tensors, grad_outputs
        totals: dict[int, Tensor | None] = dict.fromkeys(map(id, ctx.tensors))
        for piece, bound_context, inverse in reversed(ctx.pieces):
            with torch.enable_grad(), _autocast(ctx.autocast):
                context = None if bound_context is None else _leaf(bound_context)
                leaves, out, log_det = piece.reconstruct(z, context, inverse=inverse)
            trainable = [(p, id(p)) for p in piece.parameters() if p.requires_grad]
            if context is not None and context.requires_grad:
                trainable.append((context, id(bound_context)))
            outputs = {out: z_grad, **({log_det: log_det_grad} if log_det.requires_grad else {})}
            inputs = [*leaves, *(tensor for tensor, _ in trainable)]
            grads = torch.autograd.grad(list(outputs), inputs, list(outputs.values()), allow_unused=True)
            for (_, key), grad in zip(trainable, grads[len(leaves) :], strict=True):
                total = totals[key]
                totals[key] = grad if total is None else total if grad is None else total + grad
            z_grad = torch.cat([_or_zero(grad, leaf) for grad, leaf in zip(grads, leaves, strict=False)], dim=1)
            z = torch.cat([leaf.detach() for leaf in leaves], dim=1)
        _check_drift(z, samples, ctx.autocast)
        return None, z_grad, *(totals[id(tensor)] for tensor in ctx.tensors)


def _autocast(state: tuple[str, torch.dtype, bool]) -> torch.autocast:
    """Restore the forward pass's autocast, because a custom backward runs outside of it.

    The cache of rounded weights is off: a weight cached without a graph would be reused and pass no gradient.
    """
    device, dtype, enabled = state
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _drift_samples(x: Tensor) -> Tensor:
    flat = x.detach().flatten()
    return flat[:: max(1, len(flat) // DRIFT_SAMPLES)].clone()


_drift_check_enabled = True


@contextmanager
def without_drift_check() -> Iterator[None]:
    """Disable the drift check, for tensors with sizes but no values, as in a memory forecast."""
    global _drift_check_enabled
    _drift_check_enabled = False
    try:
        yield
    finally:
        _drift_check_enabled = True


def _check_drift(x: Tensor, samples: Tensor, autocast: tuple[str, torch.dtype, bool]) -> None:
    """Raise if the recovered input differs from the samples of the true one."""
    if not _drift_check_enabled:
        return
    dtype = autocast[1] if autocast[2] else x.dtype
    rms = max(1.0, float(upcast(samples).square().mean().sqrt()))  # at temperature 0 a latent is 0
    error = float((upcast(_drift_samples(x)) - upcast(samples)).square().mean().sqrt()) / rms
    if not error <= DRIFT_TOLERANCE[dtype]:  # also raises for NaN
        raise DriftError(
            f"reversible memory: the input recovered in the backward pass differs from the true input by {error:.2g} "
            f"of its RMS, expected at most {DRIFT_TOLERANCE[dtype]:g}; use train.memory: checkpoint, or lower the "
            "flow's log_scale_bound"
        )


def set_memory(module: nn.Module, memory: Memory) -> None:
    """Set the activation memory of every chain in `module`."""
    for part in module.modules():
        if "memory" in vars(part):
            vars(part)["memory"] = memory
