"""Every test here runs on a GPU where there is one."""

import pytest
from tests.kernels.on_device import move_operations

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _on_device(monkeypatch):
    move_operations(monkeypatch)
