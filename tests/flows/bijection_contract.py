"""What every invertible piece owes: checks shared by all, on `piece(x, context) -> (z, log_det)` and its inverse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import Bijection


def unsettle(module: nn.Module, objective: Callable[[], Tensor], steps: int = 3) -> None:
    """Take a few large optimiser steps and add noise: the state a training may bring a module to."""
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
    """`inverse(forward(x)) = x` and the two log-determinants cancel."""
    with torch.no_grad():
        z, log_det = piece(x, context)
        back, negative = piece.inverse(z, context)
    assert log_det.shape == negative.shape == (len(x),)
    assert back.shape == x.shape
    torch.testing.assert_close(back, x, rtol=0, atol=tolerance)
    torch.testing.assert_close(log_det + negative, torch.zeros_like(log_det), rtol=0, atol=tolerance * x[0].numel())


def check_log_det(piece: Bijection, x: Tensor, context: Tensor | None) -> None:
    """The log-determinant is that of the Jacobian, sample by sample, and samples do not see each other."""
    count, size = len(x), x[0].numel()
    jacobian = torch.autograd.functional.jacobian(lambda x: piece(x, context)[0].flatten(1), x)
    assert isinstance(jacobian, Tensor)
    jacobian = jacobian.reshape(count, size, count, size)
    log_det = piece(x, context)[1].detach()
    for row in range(count):
        expected = torch.linalg.slogdet(jacobian[row, :, row])[1]
        torch.testing.assert_close(log_det[row], expected, rtol=1e-6, atol=1e-9)
        for column in range(count):
            assert row == column or not jacobian[row, :, column].any()


def check_batch(piece: Bijection, x: Tensor, context: Tensor | None) -> None:
    """A batch equals its samples one by one."""
    with torch.no_grad():
        z, log_det = piece(x, context)
        for index in range(len(x)):
            one = slice(index, index + 1)
            z_one, log_det_one = piece(x[one], None if context is None else context[one])
            torch.testing.assert_close(z_one, z[one], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(log_det_one, log_det[one], rtol=1e-9, atol=1e-9)


def check_gradients(module: nn.Module, objective: Callable[[], Tensor]) -> None:
    """After one optimiser step every parameter has a gradient: nothing is dead, nothing unused."""
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not parameters:
        return
    optimiser = torch.optim.Adam(parameters.values(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        objective().backward()
        optimiser.step()
    dead = [name for name, value in parameters.items() if value.grad is None or not value.grad.any()]
    assert not dead, f"no gradient by the second step: {dead}"
