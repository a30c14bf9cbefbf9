"""Every instruction-set level that is built and that this CPU can run, and Triton's kernels.

KEYHOLE_TEST_LIBRARIES names a directory of other builds, such as those of `make sanitize`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from keyhole import kernels
from keyhole.kernels.backend import library
from tests.kernels.on_device import move_operations

HERE = Path(__file__).parent

if "KEYHOLE_TEST_LIBRARIES" in os.environ:
    library.DIRECTORY = Path(os.environ["KEYHOLE_TEST_LIBRARIES"]).resolve()


_LEVELS = kernels.cpu_levels() or [pytest.param("none", marks=pytest.mark.skip("no native library is built"))]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By default one case of each test runs interpreted Triton kernels, and one each lower instruction set.

    `make test-all` runs every case, `make sanitize` every case of the native code.
    """
    seen = set()
    for item in items:
        call = getattr(item, "callspec", None)
        if HERE not in item.path.parents or call is None:
            continue
        by = _expensive(item, [value for value in call.params.values() if isinstance(value, str)])
        if by is None:
            continue
        test = item.path, item.function, by  # type: ignore[attr-defined]
        if test in seen:
            item.add_marker(pytest.mark.exhaustive)
        seen.add(test)


def _expensive(item: pytest.Item, values: list[str]) -> str | None:
    """What makes a case one of which the others of its test tell nearly as much."""
    if ("triton" in values or HERE / "gpu" in item.path.parents) and not torch.cuda.is_available():
        return "triton"
    lower = [] if "KEYHOLE_TEST_LIBRARIES" in os.environ else kernels.cpu_levels()[:-1]
    return next((value for value in values if value in lower), None)


@pytest.fixture(params=_LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.cpu_level(request.param):
        yield request.param


@pytest.fixture(params=["reference", *_LEVELS])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then the native code at each level."""
    if request.param == "reference":
        yield "reference"
        return
    with kernels.cpu_level(request.param):
        yield "native"


@pytest.fixture(params=["reference", *_LEVELS, "triton"])
def any_impl(request: pytest.FixtureRequest, monkeypatch) -> Iterator[str]:
    """As `impl`, and then the Triton kernels, interpreted where there is no GPU."""
    if request.param == "triton":
        pytest.importorskip("triton")
        move_operations(monkeypatch)
    if request.param in ("reference", "triton"):
        yield request.param
        return
    with kernels.cpu_level(request.param):
        yield "native"
