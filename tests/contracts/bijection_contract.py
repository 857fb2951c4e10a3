"""Checks that every bijection passes: round trip, log-determinant, independent samples and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import Bijection


def unsettle(module: nn.Module, objective: Callable[[], Tensor], steps: int = 3) -> None:
    """Move a module away from its initialisation by a few large optimiser steps and noise."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        return
    optimiser = torch.optim.Adam(parameters, lr=2e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        objective().backward()
        optimiser.step()
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn_like(parameter)


def standard_nll(piece: Bijection, x: Tensor, context: Tensor | None) -> Tensor:
    """Mean negative log-likelihood under a standard normal, without its constant."""
    z, log_det = piece(x, context)
    return (0.5 * z.square().flatten(1).sum(1) - log_det).mean() / x[0].numel()


def check_round_trip(piece: Bijection, x: Tensor, context: Tensor | None, tolerance: float) -> None:
    """Check that `inverse(forward(x)) = x` and that the two log-determinants cancel."""
    with torch.no_grad():
        z, log_det = piece(x, context)
        recovered, inverse_log_det = piece.inverse(z, context)
    assert log_det.shape == inverse_log_det.shape == (len(x),)
    assert recovered.shape == x.shape
    torch.testing.assert_close(recovered, x, rtol=0, atol=tolerance)
    total = log_det + inverse_log_det
    torch.testing.assert_close(total, torch.zeros_like(log_det), rtol=0, atol=tolerance * x[0].numel())


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the Jacobian `[M, M]` at one sample `[C, D, H, W]` of a map that treats samples independently.

    Row i is the gradient of output i at the i-th of M copies, so one backward pass gives all rows.
    """
    copies = x.expand(x.numel(), *x.shape).clone().requires_grad_()
    outputs = function(copies).flatten(1)
    assert outputs.shape == (x.numel(), x.numel())
    return torch.autograd.grad(outputs.diagonal().sum(), copies)[0].flatten(1)


def check_log_det(piece: Bijection, x: Tensor, context: Tensor | None) -> None:
    """Check that a sample's log-determinant equals its Jacobian's, and that samples are independent."""
    log_det = piece(x, context)[1].detach()
    expanded = None if context is None else context[-1].expand(x[0].numel(), *context.shape[1:])
    matrix = jacobian(lambda copies: piece(copies, expanded)[0], x[-1])
    torch.testing.assert_close(log_det[-1], torch.linalg.slogdet(matrix)[1], rtol=1e-6, atol=1e-9)
    x = x.detach().clone().requires_grad_()
    z = piece(x, context)[0]
    for index in range(len(x)):
        (gradient,) = torch.autograd.grad((z[index] * torch.randn_like(z[index])).sum(), x, retain_graph=True)
        assert gradient[index].any()
        assert not torch.cat([gradient[:index], gradient[index + 1 :]]).any()


def check_batch(piece: Bijection, x: Tensor, context: Tensor | None) -> None:
    """Check that a batch equals its samples one by one."""
    with torch.no_grad():
        z, log_det = piece(x, context)
        for index in range(len(x)):
            row = slice(index, index + 1)
            single_z, single_log_det = piece(x[row], None if context is None else context[row])
            torch.testing.assert_close(single_z, z[row], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(single_log_det, log_det[row], rtol=1e-9, atol=1e-9)


def check_gradients(module: nn.Module, objective: Callable[[], Tensor], by_step: int = 2) -> None:
    """Check that every parameter has a nonzero gradient after `by_step` optimiser steps."""
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not parameters:
        return
    optimiser = torch.optim.Adam(parameters.values(), lr=1e-3)
    for _ in range(by_step):
        optimiser.zero_grad()
        objective().backward()
        optimiser.step()
    dead = [name for name, value in parameters.items() if value.grad is None or not value.grad.any()]
    assert not dead, f"no gradient by step {by_step}: {dead}"
