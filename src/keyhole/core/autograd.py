"""State that outlives the autograd mode it was computed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def outside_inference_mode() -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator that lets tensors made inside be written to later: those of inference mode could not be.

    Nothing changes outside inference mode.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            # Not a context manager: layers do this twice in each step.
            if not torch.is_inference_mode_enabled():
                return function(*args, **kwargs)
            with torch.inference_mode(False), torch.no_grad():
                return function(*args, **kwargs)

        return run

    return decorate
