"""Lets operations left to "auto" run their Triton kernels, interpreted on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

from keyhole.kernels import dispatch


@contextmanager
def interpreted(monkeypatch) -> Iterator[None]:
    """Inside the block, tensors count as if they lay on a GPU."""
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "_kind", lambda _tensor: "cuda")
        patched.setattr(dispatch, "_lacking", lambda _device: "")
        yield
