"""What transformers' generate says about a call of the model: whether its tokens are generated ones."""

from __future__ import annotations

import inspect
import sys
from types import CodeType
from typing import Any

from transformers import GenerationMixin


def _code(name: str) -> CodeType | None:
    function = getattr(GenerationMixin, name, None)
    return None if function is None else getattr(inspect.unwrap(function), "__code__", None)


# `generate` runs the prompt in one method of its own, in pieces or whole, and tells the model nothing of it.
_GENERATE, _PROMPT = _code("generate"), _code("_prefill")


def generating() -> bool | None:
    """Whether the running call of a model is for generated tokens; None outside of `generate`.

    Only the call stack knows: the model is called alike for the last piece of a prompt and for a new token.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _PROMPT:
            return False
        if frame.f_code is _GENERATE:
            return True
        frame = frame.f_back
    return None


def is_generated(cache: Any, tokens: int) -> bool:
    """Whether a call that brings so many tokens to a cache brings generated ones."""
    layers = (getattr(layer, "inner", None) for layer in getattr(cache, "layers", ()))
    inner = next((layer for layer in layers if layer is not None), None)
    return tokens == 1 if inner is None else inner.request.decide(inner.length, tokens, generating())
