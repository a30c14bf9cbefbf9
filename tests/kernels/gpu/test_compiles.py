"""Every Triton kernel compiles for the GPUs it is meant for, and fits into one of their multiprocessors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes that a program may have


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_fit(capability):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kernels.gpu.compiling", str(capability)],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    kernels = [json.loads(line) for line in ran.stdout.splitlines()]
    assert kernels
    for kernel in kernels:
        assert kernel["shared"] <= SHARED[capability], kernel
        assert kernel["stack"] == 0, kernel
