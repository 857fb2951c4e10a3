"""A stand-in for a GPU: a device whose tensors lie in CPU memory but cannot be mixed with those of the CPU.

As on a GPU, an operation on tensors of both devices fails, unless the one of the CPU is a scalar, and so does `numpy`.
The values are those of the CPU. torch registers a device once per process, so a test that uses it needs a process of
its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "stand_in"
CPU = torch.device("cpu")
_AUTOCAST = torch.library.Library("_", "IMPL")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
"""Operations that move values between devices."""


@cache
def register() -> None:
    """Register the device, before the first gradient of any other: autograd counts devices once."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    _AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast changes no format
    # `module.double()` replaces parameters: assigning to `parameter.data` would not change the inner tensor.
    torch.__future__.set_overwrite_module_params_on_conversion(True)


@contextmanager
def stand_in_device() -> Iterator[torch.device]:
    """Run the device's operations inside the block; those of the CPU take longer there."""
    register()
    with _Mode(), _Lists():
        yield torch.device(NAME, 0)


class _Backend(_DummyBackendModule):
    """The backend with autocast."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Formats of autocast."""
        return [torch.bfloat16]


class StandInTensor(Tensor):
    """A tensor of the stand-in device, around a tensor of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> StandInTensor:
        """Wrap a tensor of the CPU."""
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the inner tensors."""
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Also runs operations without a tensor of the device, such as `torch.zeros`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """Copies lists to the device through a tensor of the CPU, because torch itself writes to the device's memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor:
            device = kwargs.pop("device", None)
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            moved = (torch.tensor(each).to(args[0].device) if isinstance(each, list) else each for each in index)
            return func(args[0], tuple(moved))
        return func(*args, **kwargs) if func is not Tensor.tolist else func(args[0].cpu())


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    wrapped = [tensor for tensor in tensors if isinstance(tensor, StandInTensor)]
    device = kwargs.get("device")
    on_device = bool(wrapped) if device is None else torch.device(device).type == NAME
    if not wrapped and not on_device:  # of the CPU alone, the most frequent
        return func(*args, **kwargs)
    is_mixed = any(tensor.dim() for tensor in tensors if not isinstance(tensor, StandInTensor))
    if wrapped and func not in COPIES and is_mixed:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {NAME} and cpu")
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], StandInTensor)
    inner = {name: _inner(value) for name, value in kwargs.items()} | ({} if device is None else {"device": CPU})
    out = func(*_inner(args), **inner)
    if not on_device:
        return out
    wrappers = {id(tensor.inner): tensor for tensor in wrapped}  # an operation in place returns its argument

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else StandInTensor(value)

    return wrap(out) if isinstance(out, Tensor) else tree_map(wrap, out)


# By hand: torch's functions for nested values take most of an operation's time.
def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values and in lists of values."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _inner(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    return value.inner if isinstance(value, StandInTensor) else value
