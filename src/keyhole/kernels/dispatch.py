"""Who computes an operation: the plain torch reference or the native library."""

from torch import Tensor

from keyhole.kernels.library import current, missing_reason

IMPLEMENTATIONS = ("auto", "reference", "native")


def use_native(impl: str, *tensors: Tensor, supported: bool = True) -> bool:
    """Whether `impl` asks for, or "auto" can have, the native library for these tensors.

    `supported` says whether the native code covers the shapes and dtypes at hand. Asking for "native" where
    it cannot run raises instead of quietly computing something else.
    """
    if impl == "reference":
        return False
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    on_cpu = all([tensor.is_cpu for tensor in tensors])
    ready = supported and on_cpu and current() is not None
    if impl == "native" and not ready:
        raise RuntimeError(f"impl='native' cannot run: {_reason(on_cpu, supported)}; use impl='auto'")
    return ready


def _reason(on_cpu: bool, supported: bool) -> str:
    if not on_cpu:
        return "a tensor is not on the CPU"
    if not supported:
        return "these dtypes or shapes have no native code"
    return missing_reason()
