"""State that outlives the autograd mode it was computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Let tensors made here be written to later: those of inference mode could not be outside it.

    Nothing changes outside inference mode. Serves as a decorator too.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
