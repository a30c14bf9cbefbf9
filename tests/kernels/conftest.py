"""Every instruction-set level that is built and that this CPU can run."""

from collections.abc import Iterator

import pytest

from keyhole import kernels

_LEVELS = kernels.cpu_levels() or [pytest.param("none", marks=pytest.mark.skip("no native library is built"))]


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
