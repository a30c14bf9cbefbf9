"""Finds what would make a GPU's host wait, without a GPU: reads of a tensor's content by Python or torch.

A step that is free of them can be captured in a CUDA graph, and runs ahead of the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from keyhole.kernels.backend import dispatch

# Results whose size, or kind, depends on content.
_OPERATIONS = (
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave.Tensor", "bincount", "histc", "lift_fresh",
)  # fmt: skip
_METHODS = ("tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu")


class WaitedError(AssertionError):
    """Something waited for the device."""


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__
        if any(name == wrong or name.startswith(wrong + ".") for wrong in _OPERATIONS):
            raise WaitedError(f"{name} waits for the device")
        masks = args[1] if name.startswith(("index.", "index_put")) else ()
        if any(part is not None and part.dtype == torch.bool for part in masks):
            raise WaitedError(f"{name} by a mask waits for the device")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in _METHODS and isinstance(args[0], torch.Tensor):
            raise WaitedError(f"Tensor.{name} waits for the device")
        if func is torch.tensor:
            raise WaitedError("torch.tensor copies from the host; make it once, before")
        return func(*args, **(kwargs or {}))


@contextmanager
def without_waiting(monkeypatch) -> Iterator[None]:
    """Raise WaitedError where the block would wait; Triton's interpreter may, inside a kernel."""
    from triton.runtime.interpreter import GridExecutor

    run = GridExecutor.__call__

    def instead(self, *args, **kwargs):
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return run(self, *args, **kwargs)

    with monkeypatch.context() as patched, _Operations(), _Methods():
        patched.setattr(GridExecutor, "__call__", instead)
        yield


@contextmanager
def as_if_on_gpu(monkeypatch) -> Iterator[None]:
    """Take tensors for a GPU's where what depends on it is decided: impl="auto" is Triton, interpreted."""
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "is_cpu", False)
        patched.setattr(torch.Tensor, "is_cuda", True)
        patched.setattr(dispatch, "_lacking", lambda _: "")
        yield
