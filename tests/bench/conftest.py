from collections.abc import Iterator

import pytest

from keyhole.bench.case import Case
from keyhole.bench.shapes import Shape
from keyhole.tuning.timing import CacheFlusher, using_threads


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with using_threads(1):
        yield


@pytest.fixture
def flusher() -> CacheFlusher:
    return CacheFlusher(1 << 20)


@pytest.fixture
def case() -> Case:
    return Case(700, query_heads=4, kv_heads=2, head_dim=32, read_tokens=100)


@pytest.fixture
def tiny() -> Shape:
    return Shape("llama", 64, 96, 2, 4, 2, 16, 97, tied=True)
