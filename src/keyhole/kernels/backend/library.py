"""Finds, checks and opens the native library: one shared object for each instruction-set level."""

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch  # noqa: F401  first, so that the native code shares torch's OpenMP runtime

from keyhole.kernels.backend.signatures import ABI_VERSION, SIGNATURES

LEVELS = ("base", "avx2", "avx512")
VARIABLE = "KEYHOLE_CPU_LEVEL"
DIRECTORY = Path(__file__).parents[1] / "lib"

_current: list[ctypes.CDLL | None] = []


def native_available() -> bool:
    """Whether operations can run natively in this process."""
    return current() is not None


def describe() -> str:
    """One line that says which native library is in use, or why there is none."""
    library = current()
    if library is None:
        return f"native kernels: none, {missing_reason()}"
    return f"native kernels: {level_of(library)}, {library._name}"


def level() -> str:
    """The instruction-set level in use, or `none`."""
    library = current()
    return "none" if library is None else level_of(library)


def missing_reason() -> str:
    return f"no native library for this machine in {DIRECTORY} (built without a C++ compiler?)"


def cpu_levels() -> tuple[str, ...]:
    """Levels that are built and that this CPU can run, lowest first."""
    if not _path("base").exists():
        return ()
    top = _open("base").kh_cpu_level()
    return tuple(level for i, level in enumerate(LEVELS) if i <= top and _path(level).exists())


def current() -> ctypes.CDLL | None:
    """The library in use: this CPU's highest level, or the one KEYHOLE_CPU_LEVEL names; None if not built."""
    if not _current:
        _current.append(_choose(os.environ.get(VARIABLE, "")))
    return _current[0]


def native() -> ctypes.CDLL:
    library = current()
    if library is None:
        raise RuntimeError(missing_reason())
    return library


@contextmanager
def cpu_level(level: str) -> Iterator[None]:
    """Use one level inside the block, in the whole process. For tests and benchmarks."""
    before = current()
    _current[:] = [_choose(level)]
    try:
        yield
    finally:
        _current[:] = [before]


def level_of(library: ctypes.CDLL) -> str:
    return Path(library._name).stem.removeprefix("libkeyhole_")


def _choose(level: str) -> ctypes.CDLL | None:
    levels = cpu_levels()
    if level:
        if level not in levels:
            known = ", ".join(levels) or "none (no native library is built)"
            raise ValueError(f"{VARIABLE}={level!r} is not a level this machine can run, which are: {known}")
        return _open(level)
    return _open(levels[-1]) if levels else None


def _path(level: str) -> Path:
    return DIRECTORY / f"libkeyhole_{level}.so"


@functools.cache
def _open(level: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_path(level)))
    library.kh_abi_version.restype = ctypes.c_int
    found = library.kh_abi_version()
    if found != ABI_VERSION:
        raise RuntimeError(
            f"{_path(level)} has ABI {found}, this package needs {ABI_VERSION}: build it again"
        )
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = ctypes.c_int
    return library
