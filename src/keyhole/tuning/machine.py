"""The machine and the versions that figures belong to, and how much memory is free."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from keyhole.core.version import __version__
from keyhole.kernels.backend import dispatch, library

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPU = torch.device("cpu")
_LARGE = 256 << 20
_USUAL_CACHE = 32 << 20  # bytes of last-level cache where the system does not tell
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@cache
def cpu_model() -> str:
    """What the processor calls itself."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def isa_level() -> str:
    """The instruction-set level of the native kernels in use, or `none`."""
    return library.level()


def implementation(device: torch.device = _CPU) -> str:
    """Who computes an operation left to `auto` on this machine's CPU, or on its GPU."""
    if device.type == "cuda":
        return "triton" if dispatch.gpu_is_served(device) else "reference"
    return "native" if library.native_available() else "reference"


def versions() -> dict[str, str]:
    """Python and the packages that timings depend on."""
    return {
        "python": platform.python_version(),
        "keyhole": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def describe(device: torch.device = _CPU) -> dict[str, object]:
    """The machine as it computes now, and the GPU where that is what computes."""
    gpu: dict[str, object] = {"gpu": gpu_model(device)} if device.type == "cuda" else {}
    return gpu | {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa_level": isa_level(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


@cache
def cache_bytes(device: torch.device = _CPU) -> int:
    """Bytes of the largest cache of a core, shared ones included, or of a GPU."""
    if device.type == "cuda":
        # So much that reading it, which measures the bandwidth, outlasts starting to.
        return max(torch.cuda.get_device_properties(device).L2_cache_size, _LARGE)
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    known = [int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size[-1:] in _UNITS]
    return max(known, default=_USUAL_CACHE)


def gpu_model(device: torch.device) -> str:
    """What a GPU calls itself."""
    return torch.cuda.get_device_name(device)


def free_bytes(device: torch.device = _CPU) -> int:
    """Memory that can be had without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def require_memory(what: str, needed: float, device: torch.device = _CPU) -> None:
    """Refuse what will not fit.

    Raises:
        ValueError: more bytes are needed than are free.
    """
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"{what} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "give fewer tokens, fewer layers or a smaller dtype"
        )
