"""Who computes an operation: the plain torch reference, the native library or Triton kernels."""

import functools
import importlib.util
import os

import torch
from torch import Tensor

from keyhole.kernels.backend.library import current, missing_reason

IMPLEMENTATIONS = ("auto", "reference", "native", "triton")
_TENSOR_CORES = (8, 0)  # compute capability from which the kernels are written for


def use_native(impl: str, *tensors: Tensor, supported: bool = True) -> bool:
    """Whether `impl` asks for, or "auto" can have, the native library for these tensors.

    `supported` says whether the native code covers the shapes and dtypes at hand. Asking for "native" where
    it cannot run raises instead of quietly computing something else.
    """
    if not _considers(impl, "native"):
        return False
    on_cpu = at_hand(*tensors)
    ready = supported and on_cpu and current() is not None
    if impl == "native" and not ready:
        raise RuntimeError(f"impl='native' cannot run: {_reason(on_cpu, supported)}; use impl='auto'")
    return ready


def use_triton(impl: str, *tensors: Tensor, supported: bool = True) -> bool:
    """Whether `impl` asks for, or "auto" can have, Triton kernels for these tensors; see `use_native`.

    On the CPU they run, very slowly, where "triton" is asked for and TRITON_INTERPRET=1 is set.
    """
    if not _considers(impl, "triton"):
        return False
    if impl == "auto":
        return supported and all([tensor.is_cuda for tensor in tensors]) and not _lacking(tensors[0].device)
    reason = _lacking_for(tensors) or ("" if supported else "these dtypes or shapes have no kernel")
    if reason:
        raise RuntimeError(f"impl='triton' cannot run: {reason}; use impl='auto'")
    return True


def gpu_is_served(device: torch.device) -> bool:
    """Whether a GPU computes with Triton kernels."""
    return not _lacking(device)


def at_hand(*tensors: Tensor) -> bool:
    """Whether the content of tensors can be looked at without waiting for a device."""
    return all([tensor.is_cpu for tensor in tensors])


def _considers(impl: str, name: str) -> bool:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    return impl in ("auto", name)


def _reason(on_cpu: bool, supported: bool) -> str:
    if not on_cpu:
        return "a tensor is not on the CPU"
    if not supported:
        return "these dtypes or shapes have no native code"
    return missing_reason()


def _lacking_for(tensors: tuple[Tensor, ...]) -> str:
    off = [tensor.device for tensor in tensors if not tensor.is_cuda]
    if not off:
        return _lacking(tensors[0].device)
    if os.environ.get("TRITON_INTERPRET") != "1":
        return f"a tensor is on {off[0]}, which takes TRITON_INTERPRET=1 in the environment"
    return "" if _installed() else "triton is not installed"


@functools.cache
def _lacking(device: torch.device) -> str:
    """Why a GPU cannot run the kernels; empty where it can."""
    if not _installed():
        return "triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _TENSOR_CORES:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return ""


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
