from collections.abc import Iterator

import pytest

from keyhole.tuning.timing import CacheFlusher, using_threads


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with using_threads(1):
        yield


@pytest.fixture
def flusher() -> CacheFlusher:
    return CacheFlusher(1 << 20)
