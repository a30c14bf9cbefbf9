"""Compiles Triton kernels for a GPU that need not be there: `python -m tests.kernels.gpu.compiling`.

Prints a line of JSON for each kernel that the calls in tests/kernels/gpu/calls.py launch.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

os.environ.pop("TRITON_INTERPRET", None)

import triton
from tests.kernels.gpu.calls import CALLS
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction
from triton.runtime.driver import driver

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


class _Absent:
    """A driver without a device."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        return 0


def compile_all(capability: int) -> list[dict]:
    """Compile what all calls launch; what they return is without meaning."""
    driver.set_active(_Absent(capability))
    launch, found = JITFunction.run, []

    def instead(self: JITFunction, *args, grid: object, warmup: bool, **kwargs) -> object:  # noqa: ARG001
        compiled = launch(self, *args, grid=grid, warmup=True, **kwargs)
        registers, stack = _resources(compiled.asm["cubin"])
        found.append(
            {
                "kernel": compiled.metadata.name,
                "shared": compiled.metadata.shared,
                "registers": registers,
                "stack": stack,
                "warps": compiled.metadata.num_warps,
                "tensor_cores": bool(re.search(r"\bw?g?mma\b", compiled.asm["ptx"])),
            }
        )
        return compiled

    JITFunction.run = instead
    for name, call in CALLS.items():
        before = len(found)
        call()
        for kernel in found[before:]:
            kernel["call"] = name
    return found


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, where what does not fit in them goes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = _RESOURCES.findall(told)[0]
    return int(registers), int(stack)


if __name__ == "__main__":
    for line in compile_all(int(sys.argv[1])):
        print(json.dumps(line))
    print(f"triton {triton.__version__}", file=sys.stderr)
